"""Whether the values in a COCO JSON file make sense together: ids, boxes and their images. Vectorised with NumPy."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from d2_maskrcnn.data.coco.report import Problem, problem, shorten

OVERSHOOT = 1.0  # pixels that a box may reach beyond the image without a word


class CocoTable:
    """The columns of a COCO JSON file whose form is right.

    Attributes:
        images, annotations, categories: the entries as read.
        image_ids: (I,) int64.
        sizes: (I, 2) int64, width and height in pixels.
        ids, image_of, category_of: (A,) int64, the annotations' own, image's and category's id.
        boxes: (A, 4) float64 XYWH in pixels.
        is_crowd: (A,) bool.
        image_index: (A,) int64, position of each annotation's image in ``images``; -1 where there is none.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.images, self.annotations, self.categories = data["images"], data["annotations"], data["categories"]
        self.image_ids = _column(self.images, "id")
        self.sizes = np.stack([_column(self.images, "width"), _column(self.images, "height")], axis=1)
        self.ids = _column(self.annotations, "id")
        self.image_of = _column(self.annotations, "image_id")
        self.category_of = _column(self.annotations, "category_id")
        boxes = [annotation["bbox"] for annotation in self.annotations]
        self.boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        self.is_crowd = np.array([bool(each.get("iscrowd", 0)) for each in self.annotations], dtype=bool)
        self.image_index = _positions(self.image_ids, self.image_of)

    def name(self, index: int) -> str:
        """Annotation ``index`` and its image, for a message."""
        position = self.image_index[index]
        image = f" in {self.images[position]['file_name']}" if position >= 0 else ""
        return f"annotation {self.ids[index]}{image}"


def _column(entries: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([entry[key] for entry in entries], dtype=np.int64)


def _positions(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index in ``known`` (K,) of each of ``wanted`` (W,), -1 where it is not in it."""
    if len(known) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(known, kind="stable")
    slot = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    found = order[slot]
    return np.where(known[found] == wanted, found, -1)


def check_ids(table: CocoTable, evaluate: bool) -> Iterator[Problem]:
    """Yields ids that are there twice, and references to images and categories that are not there."""
    category_ids = np.array([category["id"] for category in table.categories], dtype=np.int64)
    names = np.array([category["name"] for category in table.categories])
    for values, what in (
        (table.image_ids, "images with an id that another one has"),
        (table.ids, "annotations with an id that another one has"),
        (category_ids, "categories with an id that another one has"),
        (names, "categories with a name that another one has"),
    ):
        yield from problem(_repeated(values), what, values.astype(str).item, "number them differently")
    yield from problem(
        np.flatnonzero(table.image_index < 0),
        "annotations of an image that 'images' does not list",
        lambda i: f"annotation {table.ids[i]}: image_id {table.image_of[i]}",
        "add the image or delete them",
    )
    yield from problem(
        np.flatnonzero(np.isin(table.category_of, category_ids, invert=True)),
        "annotations of a category that 'categories' does not list",
        lambda i: f"annotation {table.ids[i]}: category_id {table.category_of[i]}",
        f"the ids listed are {_ranges(category_ids)}",
    )
    if evaluate:
        yield from problem(
            np.flatnonzero(table.ids == 0),
            "annotations with the id 0",
            lambda i: table.name(i),
            "COCO's measure takes 0 for 'not matched' and counts the object as missed: number from 1",
            fatal=False,
        )


def check_boxes(table: CocoTable) -> Iterator[Problem]:
    """Yields boxes without area, outside of their image, or reaching beyond it."""
    finite = np.isfinite(table.boxes).all(axis=1)
    yield from problem(
        np.flatnonzero(~finite),
        "boxes with a number that is not finite",
        _describe_box(table),
        "expected numbers in pixels",
    )
    x, y, width, height = np.nan_to_num(table.boxes, nan=1.0, posinf=1.0, neginf=1.0).T
    sized = (width > 0) & (height > 0)
    yield from problem(
        np.flatnonzero(finite & ~sized),
        "boxes of no area",
        _describe_box(table),
        "expected [x, y, width, height] with width and height above 0: delete them or draw them again",
    )
    known = finite & sized & (table.image_index >= 0)
    image_width, image_height = _sizes_of(table)
    outside = known & ((x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0))
    yield from problem(
        np.flatnonzero(outside),
        "boxes outside of their image",
        _describe_box(table),
        "expected [x, y, width, height] in pixels of the image: delete them or draw them again",
    )
    beyond = np.maximum.reduce([-x, -y, x + width - image_width, y + height - image_height])
    yield from problem(
        np.flatnonzero(known & ~outside & (beyond > OVERSHOOT)),
        "boxes reaching beyond their image",
        _describe_box(table),
        "they are cut at its border (are they [x0, y0, x1, y1]? expected [x, y, width, height])",
        fatal=False,
    )


def check_not_empty(table: CocoTable, train: bool, annotations_required: bool = True) -> Iterator[Problem]:
    """Yields a problem for a file without images, without categories, or without objects to learn from."""
    for entries, what in ((table.images, "images"), (table.categories, "categories")):
        if not entries:
            yield Problem(0, what, (), "expected at least 1")
    if annotations_required and not len(table.annotations):
        yield Problem(0, "annotations", (), "expected at least 1")
    elif train and not (~table.is_crowd).any():
        yield Problem(0, "annotations that are no crowd (iscrowd 0)", (), "expected at least 1 to train on")


def _sizes_of(table: CocoTable) -> tuple[np.ndarray, np.ndarray]:
    """Width and height (A,) of each annotation's image; those of unknown images are meaningless."""
    if len(table.images) == 0:
        return np.ones(len(table.ids)), np.ones(len(table.ids))
    sizes = table.sizes[table.image_index]
    return sizes[:, 0], sizes[:, 1]


def _describe_box(table: CocoTable) -> Any:
    def describe(index: int) -> str:
        position = table.image_index[index]
        size = f" of {table.sizes[position, 0]}x{table.sizes[position, 1]}" if position >= 0 else ""
        return f"{table.name(index)}{size}: {shorten(table.annotations[index]['bbox'])}"

    return describe


def _repeated(values: np.ndarray) -> np.ndarray:
    """Index of the first repetition of each value that occurs more than once."""
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    return np.sort(order[1:][same])


def _ranges(ids: np.ndarray) -> str:
    ids = np.unique(ids)
    if len(ids) > 2 and ids[-1] - ids[0] == len(ids) - 1:
        return f"{ids[0]} to {ids[-1]}"
    shown = ", ".join(map(str, ids[:10]))
    return (shown or "none") + (", ..." if len(ids) > 10 else "")
