"""What is wrong with a dataset, summarised: how many entries have a problem, the first few of them, how to mend it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

EXAMPLES = 3  # shown of each kind of problem
KINDS = 4  # shown of one file

_SINGULAR = {"annotations": "annotation", "boxes": "box", "categories": "category", "images": "image"}


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one file.

    Attributes:
        count: entries that have it.
        what: what is wrong with them, in the plural, without the count; ``"annotations whose ..."``.
        examples: the first few, each with its id and value.
        mend: what was expected or how to mend it.
        fatal: whether no training or evaluation may start with it.
        structural: whether the file's form is wrong rather than a value, so that nothing else can be checked.
    """

    count: int
    what: str
    examples: tuple[str, ...]
    mend: str
    fatal: bool = True
    structural: bool = False

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        shown = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        first, _, rest = self.what.partition(" ")
        noun = _SINGULAR.get(first, first) if self.count == 1 else first
        return f"{self.count} {f'{noun} {rest}'.rstrip()}{shown}; {self.mend}"


def problem(
    bad: Sequence[int] | np.ndarray, what: str, describe: Callable[[int], str], mend: str, **kinds: bool
) -> Iterable[Problem]:
    """Yields a :class:`Problem` about the entries at the indices ``bad``, or nothing where there are none."""
    if len(bad) > 0:
        yield Problem(len(bad), what, tuple(describe(int(index)) for index in bad[:EXAMPLES]), mend, **kinds)


def summarise(where: str, problems: Iterable[Problem]) -> str:
    """One line about one file."""
    listed = list(problems)
    parts = [str(each) for each in islice(listed, KINDS)]
    if len(listed) > KINDS:
        parts.append(f"and {len(listed) - KINDS} more kinds of problems")
    return f"{where}: " + " | ".join(parts)


def shorten(value: Any, length: int = 60) -> str:
    """``repr(value)``, cut to ``length`` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
