"""Describe the flaws of a dataset: which entries have each, the first few of them in words, and how to fix it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 3  # shown per kind of flaw
SHOWN_KINDS = 4  # per file, in the one line of an error message

_SINGULAR = {"annotations": "annotation", "boxes": "box", "categories": "category", "images": "image"}


@dataclass(frozen=True)
class Flaw:
    """One kind of flaw in one dataset.

    Attributes:
        kind: a stable identifier, such as ``box-no-area``; docs/check.md lists all of them.
        severity: an ``error`` makes training or evaluation fail or their results wrong; a ``warning`` probably makes
            results worse; a ``note`` is worth knowing.
        count: number of entries that have it; 0 for a list that is empty.
        what: the flaw, in the plural and without the count: "annotations with ...".
        examples: the first few entries, each with its id and value.
        remedy: what was expected or how to fix it.
        entries: the list of the COCO JSON that ``positions`` refers to: images, annotations or categories; "" if the
            flaw concerns the dataset as a whole.
        positions: (count,) int64, positions of the flawed entries in that list.
        structural: whether it concerns the file's structure or the config rather than single values. Such a flaw is
            an error in Detectron2's built-in datasets as well.
    """

    kind: str
    severity: Severity
    count: int
    what: str
    examples: tuple[str, ...]
    remedy: str
    entries: str = ""
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), compare=False, repr=False)
    structural: bool = False

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        shown = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.title}{shown}; {self.remedy}"

    @property
    def title(self) -> str:
        """The number of entries and the flaw, such as ``1 box without area``."""
        first, _, rest = self.what.partition(" ")
        noun = _SINGULAR.get(first, first) if self.count == 1 else first
        return f"{self.count:,} {f'{noun} {rest}'.rstrip()}"


def flaw(
    kind: str,
    bad: Sequence[int] | np.ndarray,
    what: str,
    describe: Callable[[int], str],
    remedy: str,
    *,
    severity: Severity = "error",
    entries: str = "annotations",
    positions: np.ndarray | None = None,
    structural: bool = False,
) -> Iterable[Flaw]:
    """Yield one :class:`Flaw` about the entries with the indices ``bad``, or nothing if there are none.

    Args:
        describe: returns an entry's id and value by its index.
        positions: maps indices to positions in the list ``entries``; None if they are the same.
    """
    if len(bad) > 0:
        index = np.asarray(bad, dtype=np.int64)
        examples = tuple(describe(each) for each in index[:EXAMPLES].tolist())
        places = index if positions is None else positions[index]
        yield Flaw(kind, severity, len(index), what, examples, remedy, entries, places, structural)


def summarize(where: str, flaws: Iterable[Flaw]) -> str:
    """Return one line about the flaws of one file."""
    listed = list(flaws)
    parts = [str(each) for each in islice(listed, SHOWN_KINDS)]
    if len(listed) > SHOWN_KINDS:
        parts.append(f"and {len(listed) - SHOWN_KINDS} more kinds of problems: `d2-maskrcnn check` lists all")
    return f"{where}: " + " | ".join(parts)


def shorten(value: Any, length: int = 60) -> str:
    """Return ``repr(value)``, truncated to ``length`` characters."""
    text = f"an integer of {value.bit_length()} bits" if type(value) is int and abs(value) >= 2**200 else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
