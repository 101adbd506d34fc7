"""Summarize datasets, for the plan of a training and for the console."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2_maskrcnn.data.discovery import FoundData

MAX_NAMES = 8  # class names that are shown


@dataclass(frozen=True)
class DataSummary:
    """Statistics of a dataset that a plan depends on.

    Attributes:
        images: number of images.
        images_with_objects: number of images with objects that are not crowds.
        objects: number of objects that are not crowds.
        most_objects: largest number of objects in an image.
        uses_rle: whether an object has an RLE mask instead of polygons.
        sides: (objects,) square root of the area of each box, in pixels of an image whose shorter side is 1 pixel.
        longest: (objects,) ratio of longer to shorter side of the object's image.
    """

    images: int
    images_with_objects: int
    objects: int
    most_objects: int
    uses_rle: bool
    sides: np.ndarray
    longest: np.ndarray


def summarize(records: Sequence[Mapping[str, Any]]) -> DataSummary:
    """Summarize a dataset in Detectron2's standard format."""
    counts, sides, longest, uses_rle = [], [], [], False
    for index in range(len(records)):
        record = records[index]
        objects = [each for each in record.get("annotations", ()) if not each.get("iscrowd")]
        counts.append(len(objects))
        short, long = sorted((record["height"], record["width"]))
        for each in objects:
            uses_rle = uses_rle or isinstance(each.get("segmentation"), dict)
            sides.append(math.sqrt(max(each["bbox"][2] * each["bbox"][3], 0)) / max(short, 1))
            longest.append(long / max(short, 1))
    with_objects = sum(count > 0 for count in counts)
    arrays = np.array(sides, dtype=np.float64), np.array(longest, dtype=np.float64)
    return DataSummary(len(counts), with_objects, sum(counts), max(counts, default=0), uses_rle, *arrays)


def describe_data(
    summaries: Mapping[str, DataSummary], names: Sequence[str] = (), data: FoundData | None = None
) -> list[str]:
    """Describe datasets in one line each, and their classes in another."""
    files = {"train": data.train_json, "val": data.val_json} if data else {}
    lines = []
    for name, each in summaries.items():
        masks = "RLE masks" if each.uses_rle else "polygons"
        where = f"  {files[name]}" if name in files else ""
        lines.append(f"{name:6} {each.images:,} images, {each.objects:,} objects with {masks}{where}")
    if data and data.note:
        lines[-1] += f" ({data.note})"
    if data and data.origin:
        lines.insert(0, f"data   {data.origin}")
    if names:
        more = f", ... ({len(names)} classes)" if len(names) > MAX_NAMES else ""
        lines.append(f"classes {', '.join(names[:MAX_NAMES])}{more}")
    return lines
