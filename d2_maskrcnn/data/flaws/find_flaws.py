"""Find all flaws of one dataset, at the start of a training and for :func:`d2_maskrcnn.data.check`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from d2_maskrcnn.data.flaws.boxes import check_areas, check_boxes, corners_as_boxes
from d2_maskrcnn.data.flaws.coco_table import CocoTable
from d2_maskrcnn.data.flaws.flaw import Flaw, Severity
from d2_maskrcnn.data.flaws.ids import (
    check_categories,
    check_empty_images,
    check_ids,
    check_not_empty,
    check_repeated_annotations,
)
from d2_maskrcnn.data.flaws.images import ImageFiles, check_images
from d2_maskrcnn.data.flaws.masks import (
    check_against_boxes,
    check_rle_support,
    check_segmentations,
    measure_segmentations,
    no_segmentations,
)
from d2_maskrcnn.data.flaws.model_fit import check_limits, check_object_sizes
from d2_maskrcnn.data.flaws.schema import check_structure
from d2_maskrcnn.data.raw_images import raw_channels
from detectron2.config import CfgNode


@dataclass(frozen=True)
class Purpose:
    """What a dataset is needed for, which decides what counts as a flaw.

    Attributes:
        masks: whether segmentations are needed.
        train: whether it is used for training.
        evaluate: whether COCO's metrics are computed on it, which needs ``area`` and ``iscrowd``.
        polygons_only: whether RLEs of single objects are an error (``INPUT.MASK_FORMAT`` is ``polygon``).
        lenient: whether unusable boxes and segmentations are a warning instead of an error.
        decode_images: whether every image is decoded; otherwise the headers of a sample are read.
    """

    masks: bool = True
    train: bool = True
    evaluate: bool = True
    polygons_only: bool = False
    lenient: bool = False
    decode_images: bool = False


@dataclass(frozen=True)
class Findings:
    """The flaws of one dataset, and what was read to find them."""

    flaws: list[Flaw]
    table: CocoTable
    files: ImageFiles

    def of_severity(self, severity: Severity) -> list[Flaw]:
        """Return the flaws of one severity."""
        return [each for each in self.flaws if each.severity == severity]


def find_flaws(
    data: dict[str, Any],
    image_root: str | os.PathLike[str] | None,
    purpose: Purpose | None = None,
    cfg: CfgNode | None = None,
) -> Findings:
    """Find the flaws of the content of a COCO JSON and of its images.

    Args:
        data: as :func:`~d2_maskrcnn.data.coco.reader.read_coco_json` returns it.
        image_root: folder that its ``file_name`` entries are relative to; None leaves the images unchecked.
        purpose: what it is needed for; by default everything.
        cfg: the model that objects have to fit; None leaves that unchecked.
    """
    purpose, files = purpose or Purpose(), ImageFiles()
    flaws = list(check_structure(data, purpose.evaluate))
    table = CocoTable(data)
    flaws += [*check_not_empty(table, purpose.train), *check_ids(table, purpose.evaluate)]
    values = list(_check_annotations(table, purpose))
    bad_boxes = _flawed(table, [each for each in values if each.kind.startswith("box-")])
    flaws += [_downgrade(each) for each in values] if purpose.lenient else values
    if image_root is not None:
        channels = 0 if cfg is None else raw_channels(cfg)
        for_tiles = cfg is not None and not purpose.train and bool(cfg.D2_MASKRCNN.INFERENCE.TILE)
        flaws += check_images(table, image_root, files, purpose.decode_images, channels, for_tiles)
    flaws += [*check_categories(table), *check_repeated_annotations(table), *check_empty_images(table)]
    if cfg is not None:
        flaws += [*(check_limits(table, cfg) if purpose.evaluate else ()), *check_object_sizes(table, cfg, bad_boxes)]
    return Findings(flaws, table, files)


def _check_annotations(table: CocoTable, purpose: Purpose) -> Iterator[Flaw]:
    measured = measure_segmentations(table) if purpose.masks else no_segmentations(table)
    corners = corners_as_boxes(table, measured.bounds)
    of_boxes = list(check_boxes(table, corners))
    yield from of_boxes
    bad_boxes = _flawed(table, [each for each in of_boxes if each.severity == "error"])
    if purpose.evaluate:
        yield from check_areas(table, bad_boxes)
    if purpose.masks:
        yield from check_segmentations(table, measured)
        yield from check_against_boxes(table, measured.bounds, bad_boxes)
        if purpose.polygons_only:
            yield from check_rle_support(table)


def _flawed(table: CocoTable, flaws: list[Flaw]) -> np.ndarray:
    """Return which annotations of a table have one of the flaws: (A,) bool."""
    rows = [each.positions for each in flaws]
    return np.isin(table.annotation_rows, np.concatenate(rows)) if rows else np.zeros(len(table.ids), dtype=bool)


def _downgrade(found: Flaw) -> Flaw:
    """Turn an error in single values, which training leaves out, into a warning."""
    if found.severity != "error" or found.structural:
        return found
    return replace(found, severity="warning", remedy=f"{found.remedy}; training leaves the unusable ones out")
