"""Check that ids, boxes and areas of a COCO JSON file fit each other and the images, vectorized with NumPy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from d2_maskrcnn.data.flaws.flaw import Problem, problem, shorten

OVERSHOOT = 1.0  # pixels by which a box may leave the image without a warning


class CocoTable:
    """The columns of a COCO JSON file whose structure is right.

    Attributes:
        images, annotations, categories: the I, A and C entries as read.
        image_ids: (I,) int64.
        sizes: (I, 2) int64, width and height in pixels.
        ids, image_of, category_of: (A,) int64, the ids of annotations, their images and their categories.
        boxes: (A, 4) float64 XYWH in pixels.
        is_crowd: (A,) bool.
        image_index: (A,) int64, index of each annotation's image in ``images``; -1 if it is not listed.
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
        """Return the id of annotation ``index`` and the name of its image, for a message."""
        position = self.image_index[index]
        image = f" in {self.images[position]['file_name']}" if position >= 0 else ""
        return f"annotation {self.ids[index]}{image}"

    def describe_box(self, index: int) -> str:
        """Return the name, the image's size and the box of annotation ``index``, for a message."""
        position = self.image_index[index]
        size = f" of {self.sizes[position, 0]}x{self.sizes[position, 1]}" if position >= 0 else ""
        return f"{self.name(index)}{size}: {shorten(self.annotations[index]['bbox'])}"

    def image_sides(self) -> np.ndarray:
        """Return width and height of each annotation's image, 1 if it is not listed: (A, 2) int64."""
        sizes = np.concatenate([self.sizes, np.ones((1, 2), dtype=np.int64)])  # the last row has index -1
        return sizes[self.image_index]

    def objects_per_image(self) -> np.ndarray:
        """Return the number of annotations of each image that are not crowds: (I,) int64."""
        index = self.image_index[~self.is_crowd & (self.image_index >= 0)]
        return np.bincount(index, minlength=len(self.images))


def _column(entries: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([entry[key] for entry in entries], dtype=np.int64)


def _positions(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the index in ``known`` (K,) of each of ``values`` (V,), -1 for values that it does not contain."""
    if len(known) == 0:
        return np.full(len(values), -1, dtype=np.int64)
    order = np.argsort(known, kind="stable")
    slot = np.minimum(np.searchsorted(known, values, sorter=order), len(known) - 1)
    index = order[slot]
    return np.where(known[index] == values, index, -1)


def check_ids(table: CocoTable, evaluate: bool) -> Iterator[Problem]:
    """Yield repeated ids and names, and references to images and categories that are not listed."""
    category_ids = np.array([category["id"] for category in table.categories], dtype=np.int64)
    once = "expected each one once"
    for values, what, remedy in (
        (table.image_ids, "images with the id of another image", once),
        (table.ids, "annotations with the id of another annotation", once),
        (category_ids, "categories with the id of another category", once),
        (
            np.array([category["name"] for category in table.categories]),
            "categories with the name of another category",
            "rename one, or delete it if it is only the supercategory of the others",
        ),
    ):
        yield from problem(_repeated(values), what, values.astype(str).item, remedy)
    names = np.array([image["file_name"] for image in table.images])
    yield from problem(
        _repeated(names),
        "images with the file_name of another image",
        names.item,
        "annotations of one image under two ids are seen as two images: merge them",
        fatal=False,
    )
    yield from _check_references(table, category_ids)
    if evaluate:
        yield from problem(
            np.flatnonzero(table.ids == 0),
            "annotations with the id 0",
            table.name,
            "COCO's metrics use 0 for 'not matched' and count the object as missed: number from 1",
            fatal=False,
        )


def _check_references(table: CocoTable, category_ids: np.ndarray) -> Iterator[Problem]:
    yield from problem(
        np.flatnonzero(table.image_index < 0),
        "annotations of an image that 'images' does not list",
        lambda i: f"annotation {table.ids[i]}: image_id {table.image_of[i]}",
        "add the image or delete the annotations",
    )
    yield from problem(
        np.flatnonzero(np.isin(table.category_of, category_ids, invert=True)),
        "annotations of a category that 'categories' does not list",
        lambda i: f"annotation {table.ids[i]}: category_id {table.category_of[i]}",
        f"the ids listed are {_ranges(category_ids)}",
    )


def check_boxes(table: CocoTable) -> Iterator[Problem]:
    """Yield boxes that are not finite, without area, outside of their image, or reaching beyond it."""
    expected = "expected [x, y, width, height] in pixels of the image: delete or correct them"
    finite = np.logical_and.reduce(np.isfinite(table.boxes), axis=1)
    yield from _problem_of_boxes(table, ~finite, "boxes with a number that is not finite", expected)
    x, y, width, height = np.where(finite, table.boxes.T, 1.0)
    sized = (width > 0) & (height > 0)
    yield from _problem_of_boxes(
        table,
        finite & ~sized,
        "boxes without area",
        "expected [x, y, width, height] with width and height above 0: delete or correct them",
    )
    known = finite & sized & (table.image_index >= 0)
    image_width, image_height = table.image_sides().T
    outside = known & ((x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0))
    yield from _problem_of_boxes(table, outside, "boxes outside of the image", expected)
    beyond_x = np.maximum(-x, x + width - image_width)
    beyond_y = np.maximum(-y, y + height - image_height)
    far = known & ~outside & ((beyond_x > image_width) | (beyond_y > image_height))
    yield from _problem_of_boxes(table, far, "boxes reaching beyond the image by more than its size", expected)
    yield from _problem_of_boxes(
        table,
        known & ~outside & ~far & (np.maximum(beyond_x, beyond_y) > OVERSHOOT),
        "boxes reaching beyond the image",
        "training clips them at the border (are they [x0, y0, x1, y1]? expected [x, y, width, height])",
        fatal=False,
    )


def _problem_of_boxes(
    table: CocoTable, bad: np.ndarray, what: str, remedy: str, fatal: bool = True
) -> Iterator[Problem]:
    yield from problem(np.flatnonzero(bad), what, table.describe_box, remedy, fatal=fatal)


def check_areas(table: CocoTable) -> Iterator[Problem]:
    """Yield impossible values of ``area``, by which COCO's metrics sort objects into small, medium and large."""
    areas = np.array([annotation["area"] for annotation in table.annotations], dtype=np.float64)
    with np.errstate(over="ignore"):
        box_areas = np.abs(table.boxes[:, 2] * table.boxes[:, 3])
    describe: Callable[[int], str] = lambda i: f"{table.describe_box(i)}, area {areas[i]:g}"  # noqa: E731
    impossible = (table.image_index >= 0) & (areas > 2 * table.image_sides().prod(axis=1))
    yield from problem(
        np.flatnonzero(impossible),
        "annotations with an area larger than the image",
        describe,
        "expected the area of the mask in square pixels",
    )
    doubtful = ~impossible & ((areas == 0) | (areas > 1.5 * box_areas)) & (box_areas > 4)
    yield from problem(
        np.flatnonzero(doubtful),
        "annotations with an area that does not fit the box",
        describe,
        "expected the area of the mask in square pixels; AP of small, medium and large objects depends on it",
        fatal=False,
    )


def check_not_empty(table: CocoTable, train: bool) -> Iterator[Problem]:
    """Yield a problem for a file without images, without categories or, to train on it, without objects."""
    for entries, what in ((table.images, "images"), (table.categories, "categories")):
        if not entries:
            yield Problem(0, what, (), "expected at least 1")
    if train and not len(table.annotations):
        yield Problem(0, "annotations", (), "expected at least 1")
    elif train and table.is_crowd.all():
        yield Problem(0, "annotations that are not crowds (iscrowd 0)", (), "expected at least 1 to train on")


def _repeated(values: np.ndarray) -> np.ndarray:
    """Return the index of the second occurrence of each repeated value."""
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    return np.sort(order[1:][same])


def _ranges(ids: np.ndarray) -> str:
    ids = np.unique(ids)
    if len(ids) > 2 and ids[-1] - ids[0] == len(ids) - 1:
        return f"{ids[0]} to {ids[-1]}"
    shown = ", ".join(map(str, ids[:10]))
    return (shown or "none") + (", ..." if len(ids) > 10 else "")
