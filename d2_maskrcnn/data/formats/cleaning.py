"""Drop the annotations of a dataset that cannot be used, and complete the others."""

from collections import Counter
from typing import Any

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm

from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile, bounding_box
from d2_maskrcnn.data.formats.shapes import rectangle
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import segmentation_to_rle
from d2_maskrcnn.structures.rle import decode_runs

BOX_AS_RECTANGLE = "boxes without a mask that became rectangles"
SHORT_POLYGON = "polygons of fewer than 3 points that were left out of their object"
BOX_FROM_MASK = "boxes without finite sides above 0 that were computed from the mask"


def clean(dataset: Dataset, progress: bool = False) -> Counter[str]:
    """Drop annotations without pixels in their image, and give each of the others a mask, a box and an area; in place.

    Args:
        dataset: as a reader returns it. ``dropped`` gets the reasons.
        progress: whether a progress bar is shown.

    Returns:
        The number of changes by kind.
    """
    images = {image.id: image for image in dataset.images}
    notes: Counter[str] = Counter()
    kept = []
    for annotation in tqdm(
        dataset.annotations, "Checking", unit="object", leave=False, disable=None if progress else True
    ):
        with dataset.dropping(annotation.where):
            _complete(annotation, images[annotation.image_id], notes)
            kept.append(annotation)
    dataset.annotations = kept
    return notes


def _complete(annotation: Annotation, image: ImageFile, notes: Counter[str]) -> None:
    segmentation = annotation.segmentation
    if not segmentation:
        if not _is_box(annotation.bbox):
            raise UserError("neither a mask nor a box of finite sides above 0")
        segmentation = [rectangle(*annotation.bbox)]
        notes[BOX_AS_RECTANGLE] += 1
    elif isinstance(segmentation, list):
        long = [each for each in segmentation if not isinstance(each, list) or len(each) >= 6]
        if long and len(long) < len(segmentation):
            notes[SHORT_POLYGON] += len(segmentation) - len(long)
            segmentation = long
    rle = _to_rle(segmentation, image)
    area = float(mask_util.area(rle))
    if area == 0:
        raise UserError("no pixel inside of its image")
    annotation.segmentation = segmentation if isinstance(segmentation, list) else rle
    if not _is_box(annotation.bbox):
        if annotation.bbox is not None:
            notes[BOX_FROM_MASK] += 1
        annotation.bbox = bounding_box(annotation.segmentation, image.height, image.width)
    if not isinstance(annotation.area, (int, float)) or not 0 < annotation.area < np.inf:
        annotation.area = area


def _to_rle(segmentation: Any, image: ImageFile) -> dict[str, Any]:
    """Convert to a compressed RLE with a text as ``counts``.

    Raises:
        UserError: the segmentation is malformed or belongs to an image of another size.
    """
    try:
        rle = segmentation_to_rle(segmentation, image.height, image.width)
        runs = decode_runs(rle["counts"])
    except UserError as error:
        raise UserError(_reason(str(error))) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError("a malformed segmentation") from error
    if runs.sum() != image.height * image.width:
        raise UserError("an RLE whose runs do not add up to height x width")
    counts = rle["counts"]
    return {
        "size": [image.height, image.width],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _reason(message: str) -> str:
    """Return a message about a segmentation without its values, so that equal ones can be counted."""
    for part, reason in (
        ("far outside", "a polygon far outside of its image, or with coordinates that are not finite"),
        ("expected polygons", "a polygon of fewer than 3 points, or not of numbers"),
        ("of size", "an RLE of another size than its image"),
    ):
        if part in message:
            return reason
    return "a malformed segmentation"


def _is_box(box: Any) -> bool:
    """Return whether a box is four finite numbers with a width and height above 0."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
        return False
    return all(abs(side) < 2**53 for side in box) and box[2] > 0 and box[3] > 0
