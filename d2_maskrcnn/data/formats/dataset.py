"""Represent a dataset in memory, independent of the annotation tool that it came from.

Every reader in this folder returns a :class:`Dataset`, and every writer takes one. It is COCO's model: images,
categories, and annotations that refer to both by id. Coordinates are in pixels of the upright image, x to the right and
y down; pixel i covers [i, i + 1].
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import segmentation_to_rle

Segmentation = list[list[float]] | dict[str, Any]

_SPLIT = re.compile(r"(?:^|[^a-z])(train|valid|val|dev|test)")


@dataclass(slots=True)
class Category:
    """A class of objects. Its place in :attr:`Dataset.categories` is the class index, from 0."""

    id: int
    name: str


@dataclass(slots=True)
class ImageFile:
    """An image file of a dataset.

    Attributes:
        id: unique in the dataset.
        path: absolute.
        name: its path in the dataset with ``/``, unique within its split; never absolute and without ``..``.
        width, height: of the upright image in pixels, read from the file.
        split: the part of the dataset that it belongs to, such as "train"; "" if there is only one part.
        declared_size: (width, height) that the annotation file gives; None if it gives none.
        source_id: id in the annotation file, in which splits may use the same ids.
        embedded_in: the LabelMe file that contains the image, if there is no file at ``path``; see
            :func:`~d2_maskrcnn.data.formats.image_references.embedded_image`.
    """

    id: int
    path: Path
    name: str
    width: int
    height: int
    split: str = ""
    declared_size: tuple[Any, Any] | None = None
    source_id: Any = None
    embedded_in: Path | None = None


@dataclass(slots=True)
class Annotation:
    """One object, or a crowd of them.

    Values are as in the source, and need not be valid; :mod:`d2_maskrcnn.data.formats.cleaning` drops those that are
    not.

    Attributes:
        image_id, category_id: of an image and a category of the dataset.
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]``, of which the union is taken, or COCO's RLE, compressed
            or not; an empty list if there is only a box.
        bbox: [x, y, width, height] in pixels; None if the source has none.
        iscrowd: 1 for a region of many objects, otherwise 0.
        id: in the source; need not be unique.
        area: in square pixels, if the source has it.
        score: of a detection, in [0, 1].
        where: its place in the source, for messages, such as "a.json: shape 3".
    """

    image_id: int
    category_id: int
    segmentation: Any
    bbox: Any = None
    iscrowd: int = 0
    id: Any = None
    area: Any = None
    score: float | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something in the source that is not part of the dataset.

    Attributes:
        kind: "file", "image", "annotation" or "category".
        where: its file and id.
        reason: why, without the particulars, so that equal reasons can be counted.
        detail: the value in question; "" if there is none.
    """

    kind: str
    where: str
    reason: str
    detail: str = ""


@dataclass
class Dataset:
    """Images, categories and annotations of one source.

    Attributes:
        source: the file or folder that was read, or the name of a registered dataset.
        format: a key of :data:`d2_maskrcnn.data.formats.FORMATS`.
        categories: in the order of the model's classes.
        dropped: what the reader could not use, with reasons.
        files: the annotation files that were read, or their folders.
    """

    source: str
    format: str
    images: list[ImageFile] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @contextlib.contextmanager
    def dropping(self, where: str) -> Iterator[None]:
        """Drop the annotation that the block reads if it raises :class:`UserError`, with the error as the reason."""
        try:
            yield
        except UserError as error:
            self.drop("annotation", where, str(error))

    def drop(self, kind: str, where: str, reason: str, detail: object = "") -> None:
        """Record something that is left out."""
        self.dropped.append(Dropped(kind, where, reason, str(detail)))

    def splits(self) -> list[str]:
        """Return the splits in order of appearance."""
        return list(dict.fromkeys(image.split for image in self.images))

    def annotations_of_images(self) -> dict[int, list[Annotation]]:
        """Return the annotations by image id; images without any have an empty list."""
        of_image: dict[int, list[Annotation]] = {image.id: [] for image in self.images}
        for annotation in self.annotations:
            of_image[annotation.image_id].append(annotation)
        return of_image

    def image_root(self) -> Path:
        """Return the innermost folder that contains all images.

        Raises:
            UserError: there are no images.
        """
        if not self.images:
            raise UserError(f"{self.source}: no images; expected at least one readable image")
        return common_folder(image.path for image in self.images)

    def add_category(self, name: str) -> int:
        """Return the id of the category with this name, which is appended if it is new."""
        for category in self.categories:
            if category.name == name:
                return category.id
        number = max((category.id for category in self.categories), default=0) + 1
        self.categories.append(Category(number, name))
        return number


def bounding_box(segmentation: Segmentation, height: int, width: int) -> list[float]:
    """Return the bounding box [x, y, width, height] of a segmentation in pixels: of a mask's pixels, or of points.

    Raises:
        UserError: the segmentation is malformed or belongs to an image of another size.
    """
    if isinstance(segmentation, dict):
        return [float(side) for side in mask_util.toBbox(segmentation_to_rle(segmentation, height, width))]
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
    low, high = points.min(axis=0), points.max(axis=0)
    return [float(side) for side in (*low, *(high - low))]


def merge(source: str, datasets: Iterable[Dataset]) -> Dataset:
    """Join the parts of a dataset: images and annotations are renumbered from 1, categories joined by name.

    Category ids are kept if no two names share one; otherwise they are numbered from 1.
    """
    parts = list(datasets)
    names = list(dict.fromkeys(category.name for part in parts for category in part.categories))
    ids = defaultdict(set)
    for part in parts:
        for category in part.categories:
            ids[category.name].add(category.id)
    known = [next(iter(ids[name])) for name in names if len(ids[name]) == 1]
    keep = len(set(known)) == len(names)
    number_of = dict(zip(names, known if keep else range(1, len(names) + 1), strict=True))
    order = sorted(number_of, key=number_of.__getitem__) if keep else names
    joined = Dataset(source, parts[0].format, categories=[Category(number_of[name], name) for name in order])
    for part in parts:
        _append(joined, part, number_of)
    return joined


def _append(joined: Dataset, part: Dataset, number_of: dict[str, int]) -> None:
    names = {category.id: category.name for category in part.categories}
    image_ids = {}
    for image in part.images:
        image_ids[image.id] = image.id = len(joined.images) + 1
        joined.images.append(image)
    for annotation in part.annotations:
        annotation.image_id = image_ids[annotation.image_id]
        annotation.category_id = number_of[names[annotation.category_id]]
        joined.annotations.append(annotation)
    joined.dropped += part.dropped


def common_folder(files: Iterable[str | Path]) -> Path:
    """Return the innermost folder that contains all files; there is at least one, and their paths are absolute."""
    return Path(os.path.commonpath([os.path.dirname(file) for file in files]))


def usual_split(path: Path) -> str:
    """Return the split that the name of an annotation file, or else of its folder, tells.

    >>> usual_split(Path("a/instances_train2017.json")), usual_split(Path("valid/_annotations.coco.json"))
    ('train', 'val')

    Returns:
        "train", "val" or "test"; "" for other names.
    """
    match = _SPLIT.search(path.stem.lower()) or _SPLIT.search(path.parent.name.lower())
    name = match.group(1) if match else ""
    return {"valid": "val", "dev": "val"}.get(name, name)
