"""Whether the outlines in a COCO JSON file are polygons or run-length codes (RLE) that can be drawn."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from d2_maskrcnn.data.coco.boxes import CocoTable
from d2_maskrcnn.data.coco.report import Problem, problem
from d2_maskrcnn.data.coco.schema import is_number
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import decode_runs

CHUNK = 50_000  # annotations whose coordinates are looked at together
TRIED = 2_000  # compressed RLEs that are read to try them, spread over the file


def check_segmentations(table: CocoTable, polygons_only: bool = False) -> Iterator[Problem]:
    """Yields outlines that are missing, too short, not numbers, or of another size than their image.

    Args:
        table: the file's columns.
        polygons_only: whether ``INPUT.MASK_FORMAT`` is ``polygon``, which cannot take an RLE in training.
    """
    outlines = [annotation.get("segmentation") for annotation in table.annotations]
    faults = [_fault(table, index, outline) for index, outline in enumerate(outlines)]
    for index in _not_numbers(outlines, faults):
        faults[index] = "coordinates that are not finite numbers"
    for index in _undecodable(outlines, faults):
        faults[index] = "an RLE whose runs do not add up to height x width"
    yield from problem(
        [index for index, fault in enumerate(faults) if fault],
        "annotations with a bad 'segmentation'",
        lambda index: f"{table.name(index)}: {faults[index]}",
        "expected polygons [[x0, y0, x1, y1, x2, y2, ...], ...] of at least 3 points in pixels, or an RLE "
        '{"size": [height, width], "counts": ...}',
    )
    if polygons_only:
        yield from problem(
            [i for i, outline in enumerate(outlines) if isinstance(outline, dict) and not table.is_crowd[i]],
            "annotations whose 'segmentation' is an RLE, which INPUT.MASK_FORMAT polygon cannot take",
            table.name,
            "pass INPUT.MASK_FORMAT bitmask",
            structural=True,  # no dataset of whatever origin can be trained on so
        )


def _fault(table: CocoTable, index: int, outline: Any) -> str | None:
    """What is wrong with the form of one outline, or None."""
    if type(outline) is list:
        if not outline:
            return "it is empty"
        for polygon in outline:
            if type(polygon) is not list:
                return "expected a list of polygons, each a list of numbers"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"a polygon of {len(polygon)} numbers"
        return None
    if type(outline) is dict:
        return _rle_fault(table, index, outline)
    return "there is none (for boxes only, pass MODEL.MASK_ON False)" if outline is None else "no list and no object"


def _rle_fault(table: CocoTable, index: int, rle: dict[str, Any]) -> str | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(counts, list | str) or not isinstance(size, list):
        return "an RLE without 'size' or 'counts'"
    position = table.image_index[index]
    if position >= 0:
        width, height = (int(value) for value in table.sizes[position])
        if size != [height, width]:
            return f"an RLE of size {size} (height, width) in an image of [{height}, {width}]"
    if isinstance(counts, list) and not (
        all(map(is_number, counts)) and min(counts, default=-1) >= 0 and sum(counts) == size[0] * size[1]
    ):
        return "an RLE whose runs do not add up to height x width"
    return None


def _not_numbers(outlines: list[Any], faults: list[str | None]) -> Iterator[int]:
    """Indices of outlines made of polygons, right so far, in which a coordinate is no finite number."""
    polygonal = [i for i, outline in enumerate(outlines) if type(outline) is list and faults[i] is None]
    for start in range(0, len(polygonal), CHUNK):
        chunk = polygonal[start : start + CHUNK]
        if not _all_finite(chain.from_iterable(chain.from_iterable(outlines[i] for i in chunk))):
            yield from (i for i in chunk if not _all_finite(chain.from_iterable(outlines[i])))


def _all_finite(values: Any) -> bool:
    try:
        return bool(np.isfinite(np.fromiter(values, dtype=np.float64)).all())
    except (TypeError, ValueError, OverflowError):
        return False


def _undecodable(outlines: list[Any], faults: list[str | None]) -> Iterator[int]:
    """Indices of compressed RLEs that do not fill their image, among some ``TRIED`` spread over the file."""
    compressed = [
        i for i, each in enumerate(outlines) if faults[i] is None and type(each) is dict and type(each["counts"]) is str
    ]
    for i in compressed[:: max(1, len(compressed) // TRIED)]:
        height, width = outlines[i]["size"]
        try:
            complete = decode_runs(outlines[i]["counts"]).sum() == height * width
        except UserError:
            complete = False
        if not complete:
            yield i
