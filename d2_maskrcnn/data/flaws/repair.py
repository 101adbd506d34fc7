"""Repair flaws that need no decision: compute values that follow from others, and drop unusable entries."""

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from d2_maskrcnn.data.flaws.entry_repairs import REPAIRS
from d2_maskrcnn.data.flaws.find_flaws import Findings, Purpose, find_flaws
from d2_maskrcnn.data.flaws.flaw import Flaw
from d2_maskrcnn.data.flaws.loading import Content
from d2_maskrcnn.data.flaws.schema import is_id

PASSES = 6  # a repair can show another flaw: a clipped polygon has another box


@dataclass
class Repaired:
    """A repaired dataset and what was done to it.

    Attributes:
        content: the repaired copy.
        actions: what was done, such as "boxes computed from the masks" -> number of entries.
    """

    content: Content
    actions: Counter[str] = field(default_factory=Counter)


def repair(content: Content, findings: Findings, purpose: Purpose) -> Repaired:
    """Repair a copy of a dataset.

    Args:
        content: what was checked; stays unchanged.
        findings: the flaws of ``content``, with decoded images.
        purpose: that they were found for.
    """
    result = Repaired(replace(content, data=copy.deepcopy(content.data)))
    for _ in range(PASSES):
        work = Work(result.content, findings, result.actions)
        for each in findings.flaws:
            if each.kind in REPAIRS:
                work.apply(each)
        if not work.changed:
            break
        work.remove_dropped()
        findings = find_flaws(result.content.data, None, purpose)  # images were repaired in the first pass
    return result


class Work:
    """One pass of repairs.

    Attributes:
        content, findings: what is repaired, and its flaws.
        actions: what was done, counted.
        dropped: positions of the entries to be removed at the end of the pass, by list.
        changed: whether anything was repaired.
    """

    def __init__(self, content: Content, findings: Findings, actions: Counter[str]) -> None:
        self.content, self.findings, self.actions = content, findings, actions
        self.dropped: dict[str, set[int]] = {"images": set(), "annotations": set(), "categories": set()}
        self.changed = False
        self._next_id = {key: max([0, *map(_id, content.data[key])]) + 1 for key in self.dropped}
        self._images: dict[int, dict[str, Any]] = {}
        for image in content.data["images"]:
            if type(image) is dict and is_id(image.get("id")):
                self._images.setdefault(image["id"], image)
        self._indices = {row: index for index, row in enumerate(findings.table.image_rows.tolist())}

    def apply(self, found: Flaw) -> None:
        """Repair the entries with one flaw."""
        for position in found.positions.tolist():
            if position not in self.dropped[found.entries]:
                action = REPAIRS[found.kind](self, found.entries, position)
                if action:
                    self.changed = True
                    self.actions[action.format(found.entries)] += 1

    def entry(self, entries: str, position: int) -> dict[str, Any]:
        """Return an entry of one of the lists, which must be an object."""
        entry: dict[str, Any] = self.content.data[entries][position]
        return entry

    def size_of(self, annotation: dict[str, Any]) -> tuple[int, int] | None:
        """Return (width, height) of an annotation's image, or None if it is not known."""
        number = annotation.get("image_id", 0)
        image = self._images.get(number, {}) if is_id(number) else {}
        width, height = image.get("width"), image.get("height")
        return (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None

    def actual_size(self, position: int) -> tuple[int, int] | None:
        """Return (width, height) of the upright image in a file that was read, or None."""
        return self.findings.files.sizes.get(self._indices.get(position, -1))

    def new_id(self, entries: str) -> int:
        """Return an id that no entry of a list has."""
        self._next_id[entries] += 1
        return self._next_id[entries] - 1

    def remove_dropped(self) -> None:
        """Remove the dropped entries, and the annotations of dropped images."""
        data = self.content.data
        kept = {_id(each) for index, each in enumerate(data["images"]) if index not in self.dropped["images"]}
        gone = {_id(data["images"][index]) for index in self.dropped["images"]} - kept
        orphans = {
            index
            for index, each in enumerate(data["annotations"])
            if type(each) is dict and is_id(each.get("image_id")) and each["image_id"] in gone
        }
        orphans -= self.dropped["annotations"]
        if orphans:
            self.actions["annotations of dropped images dropped"] += len(orphans)
        self.dropped["annotations"] |= orphans
        for key, positions in self.dropped.items():
            data[key] = [each for index, each in enumerate(data[key]) if index not in positions]


def _id(entry: Any) -> int:
    """Return the id of an entry, 0 if it has none that is valid."""
    return entry["id"] if type(entry) is dict and is_id(entry.get("id")) else 0
