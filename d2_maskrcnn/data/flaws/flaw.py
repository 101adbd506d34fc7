"""Summarize the problems of a dataset: how many entries have each, the first few of them, and how to fix it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

EXAMPLES = 3  # shown per kind of problem
KINDS = 4  # shown per file

_SINGULAR = {"annotations": "annotation", "boxes": "box", "categories": "category", "images": "image"}


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one file.

    Attributes:
        count: number of entries that have it.
        what: the problem, in the plural and without the count: "annotations with ...".
        examples: the first few entries, each with its id and value.
        remedy: what was expected or how to fix it.
        fatal: whether the file cannot be used with it; False for a warning.
        structural: whether it concerns the file's structure or config rather than single values. Such a problem is
            fatal in Detectron2's built-in datasets as well.
    """

    count: int
    what: str
    examples: tuple[str, ...]
    remedy: str
    fatal: bool = True
    structural: bool = False

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        shown = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        first, _, rest = self.what.partition(" ")
        noun = _SINGULAR.get(first, first) if self.count == 1 else first
        return f"{self.count} {f'{noun} {rest}'.rstrip()}{shown}; {self.remedy}"


def problem(
    bad: Sequence[int] | np.ndarray, what: str, describe: Callable[[int], str], remedy: str, **kinds: bool
) -> Iterable[Problem]:
    """Yield one :class:`Problem` about the entries with the indices ``bad``, or nothing if there are none."""
    if len(bad) > 0:
        yield Problem(len(bad), what, tuple(describe(int(index)) for index in bad[:EXAMPLES]), remedy, **kinds)


def summarize(where: str, problems: Iterable[Problem]) -> str:
    """Return one line about the problems of one file."""
    listed = list(problems)
    parts = [str(each) for each in islice(listed, KINDS)]
    if len(listed) > KINDS:
        parts.append(f"and {len(listed) - KINDS} more kinds of problems")
    return f"{where}: " + " | ".join(parts)


def shorten(value: Any, length: int = 60) -> str:
    """Return ``repr(value)``, truncated to ``length`` characters."""
    text = f"an integer of {value.bit_length()} bits" if type(value) is int and abs(value) >= 2**200 else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
