"""Store the entries of a COCO JSON as columns of numbers, without those whose ids, names or sizes are invalid."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from d2_maskrcnn.data.flaws.flaw import Flaw, Severity, flaw, shorten
from d2_maskrcnn.data.flaws.schema import CATEGORY_RULES, IMAGE_RULES, REFERENCE_RULES, is_area, is_box, is_id, is_sound


class CocoTable:
    """The columns of a COCO JSON. Entries whose ids, names or image sizes are invalid are left out.

    Attributes:
        images, annotations, categories: the I, A and C entries as read.
        image_rows, annotation_rows, category_rows: (I,), (A,) and (C,) int64, their positions in the JSON's lists.
        image_ids: (I,) int64.
        listed_images, listed_categories: int64 ids of all images and categories with a valid id, also of those that are
            left out.
        sizes: (I, 2) int64, width and height in pixels.
        ids, image_of, category_of: (A,) int64, the ids of annotations, their images and their categories.
        boxes: (A, 4) float64 XYWH in pixels, NaN where ``bbox`` is not four numbers.
        has_box: (A,) bool, whether ``bbox`` is four numbers, which may be NaN or infinite.
        areas: (A,) float64 in square pixels, NaN where there is no valid ``area``.
        is_crowd: (A,) bool.
        image_index: (A,) int64, index of each annotation's image in ``images``; -1 if it is not among them.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.images, self.image_rows = _sound(data["images"], IMAGE_RULES)
        self.annotations, self.annotation_rows = _sound(data["annotations"], REFERENCE_RULES)
        self.categories, self.category_rows = _sound(data["categories"], CATEGORY_RULES)
        self.image_ids = _column(self.images, "id")
        self.listed_images, self.listed_categories = _valid_ids(data["images"]), _valid_ids(data["categories"])
        self.category_ids = _column(self.categories, "id")
        self.sizes = np.stack([_column(self.images, "width"), _column(self.images, "height")], axis=1)
        self.ids = _column(self.annotations, "id")
        self.image_of = _column(self.annotations, "image_id")
        self.category_of = _column(self.annotations, "category_id")
        self.has_box = np.array([is_box(each.get("bbox")) for each in self.annotations], dtype=bool)
        boxes = [each["bbox"] if is_box(each.get("bbox")) else [np.nan] * 4 for each in self.annotations]
        self.boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        areas = [each.get("area") for each in self.annotations]
        self.areas = np.array([area if is_area(area) else np.nan for area in areas], dtype=np.float64)
        self.is_crowd = np.array([each.get("iscrowd", 0) in (1, True) for each in self.annotations], dtype=bool)
        self.image_index = index_in(self.image_ids, self.image_of)

    def name(self, index: int) -> str:
        """Return the id of annotation ``index`` and the name of its image, for a message."""
        position = self.image_index[index]
        image = f" in {self.images[position]['file_name']}" if position >= 0 else ""
        return f"annotation {self.ids[index]}{image}"

    def describe_box(self, index: int) -> str:
        """Return the name, the image's size and the box of annotation ``index``, for a message."""
        position = self.image_index[index]
        size = f" of {self.sizes[position, 0]}x{self.sizes[position, 1]}" if position >= 0 else ""
        return f"{self.name(index)}{size}: {shorten(self.annotations[index].get('bbox'))}"

    def image_sides(self) -> np.ndarray:
        """Return width and height of each annotation's image, 1 if it is not known: (A, 2) int64."""
        sizes = np.concatenate([self.sizes, np.ones((1, 2), dtype=np.int64)])  # the last row has index -1
        return sizes[self.image_index]

    def objects_per_image(self) -> np.ndarray:
        """Return the number of annotations of each image that are not crowds: (I,) int64."""
        index = self.image_index[~self.is_crowd & (self.image_index >= 0)]
        return np.bincount(index, minlength=len(self.images))

    def objects_per_category(self) -> np.ndarray:
        """Return the number of annotations of each category that are not crowds: (C,) int64."""
        index = index_in(self.category_ids, self.category_of[~self.is_crowd])
        return np.bincount(index[index >= 0], minlength=len(self.categories))

    def flaw(
        self,
        entries: str,
        kind: str,
        bad: Sequence[int] | np.ndarray,
        what: str,
        remedy: str,
        describe: Callable[[int], str] | None = None,
        severity: Severity = "error",
        structural: bool = False,
    ) -> Iterable[Flaw]:
        """Yield a :class:`Flaw` about entries of this table, or nothing if there are none.

        Args:
            entries: the list that they are in.
            bad: their indices, or a bool for each entry.
            describe: returns an entry's id and value; by default its name.
        """
        names: dict[str, tuple[np.ndarray, Callable[[int], str]]] = {
            "annotations": (self.annotation_rows, self.name),
            "images": (self.image_rows, lambda index: self.images[index]["file_name"]),
            "categories": (self.category_rows, lambda index: repr(self.categories[index]["name"])),
        }
        rows, name = names[entries]
        place: dict[str, Any] = {"entries": entries, "positions": rows}
        yield from flaw(
            kind, _indices(bad), what, describe or name, remedy, severity=severity, structural=structural, **place
        )

    def annotation_flaw(self, *values: Any, **options: Any) -> Iterable[Flaw]:
        """Yield a flaw of annotations, by default named by id and image; see :meth:`flaw`."""
        return self.flaw("annotations", *values, **options)

    def image_flaw(self, *values: Any, **options: Any) -> Iterable[Flaw]:
        """Yield a flaw of images, by default named by ``file_name``; see :meth:`flaw`."""
        return self.flaw("images", *values, **options)

    def category_flaw(self, *values: Any, **options: Any) -> Iterable[Flaw]:
        """Yield a flaw of categories, by default named by ``name``; see :meth:`flaw`."""
        return self.flaw("categories", *values, **options)


def _indices(bad: Sequence[int] | np.ndarray) -> np.ndarray:
    index = np.asarray(bad)
    return np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)


def repeated(values: np.ndarray) -> np.ndarray:
    """Return the index of the second and later occurrences of each repeated value, in ascending order."""
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    return np.sort(order[1:][same])


def _sound(entries: list[Any], rules: tuple[Any, ...]) -> tuple[list[dict[str, Any]], np.ndarray]:
    rows = [index for index, entry in enumerate(entries) if is_sound(entry, rules)]
    return [entries[index] for index in rows], np.array(rows, dtype=np.int64)


def _valid_ids(entries: list[Any]) -> np.ndarray:
    ids = [each["id"] for each in entries if type(each) is dict and is_id(each.get("id"))]
    return np.array(ids, dtype=np.int64)


def _column(entries: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([entry[key] for entry in entries], dtype=np.int64)


def index_in(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the index in ``known`` (K,) of each of ``values`` (V,), -1 for values that it does not contain."""
    if len(known) == 0:
        return np.full(len(values), -1, dtype=np.int64)
    order = np.argsort(known, kind="stable")
    slot = np.minimum(np.searchsorted(known, values, sorter=order), len(known) - 1)
    index = order[slot]
    return np.where(known[index] == values, index, -1)
