"""Turn detections into annotations that a person corrects in an annotation tool."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from d2_maskrcnn.data.formats import shapes
from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, ImageFile, bounding_box
from d2_maskrcnn.structures.contours import mask_to_rings, simplify_rings

MIN_IOU = 0.98  # of a simplified polygon with the detected mask
MIN_SCORE = 0.1  # of the detections by which the uncertainty of an image is measured


def prediction_dataset(source: str, class_names: Sequence[str], category_ids: Sequence[int]) -> Dataset:
    """Return a dataset without images for the classes of a model."""
    categories = [Category(number, name) for number, name in zip(category_ids, class_names, strict=False)]
    return Dataset(source, "predictions", categories=categories)


def add_predictions(
    dataset: Dataset, image: ImageFile, records: Iterable[Mapping[str, Any]], min_iou: float = MIN_IOU
) -> None:
    """Add the detections of one image; annotations are numbered from 1 on.

    Args:
        dataset: gets the image and its annotations, in place.
        image: of which the detections are.
        records: as :func:`d2_maskrcnn.results.to_records` returns them.
        min_iou: see :func:`simplify`.
    """
    dataset.images.append(image)
    known = {category.id for category in dataset.categories}
    for number, record in enumerate(records):
        if record["category_id"] not in known:
            known.add(record["category_id"])
            dataset.categories.append(Category(record["category_id"], record["category"]))
        annotation = Annotation(
            image.id,
            record["category_id"],
            simplify(record["segmentation"], image, min_iou) if "segmentation" in record else [],
            record["bbox"],
            id=len(dataset.annotations) + 1,
            score=record["score"],
            where=f"{image.path}: detection {number}",
        )
        if annotation.segmentation:
            annotation.bbox = bounding_box(annotation.segmentation, image.height, image.width)
        dataset.annotations.append(annotation)


def simplify(rle: dict[str, Any], image: ImageFile, min_iou: float = MIN_IOU) -> Any:
    """Convert a mask to polygons of few points, without its holes if their share of the mask is small enough.

    Args:
        rle: of the mask.
        image: that it belongs to.
        min_iou: least IoU of the polygons with the mask.

    Returns:
        Polygons, or ``rle`` itself if polygons would lose more.
    """
    mask, (x, y) = shapes.mask_of(rle, image)
    outer = [ring for ring, _ in mask_to_rings(mask)]
    rings = simplify_rings(outer, mask, min_iou) if outer else None
    return rle if rings is None else [shapes.flat(ring + (x, y)) for ring in rings]


def uncertainty(scores: np.ndarray) -> float:
    """Measure how uncertain a model is about an image: the mean binary entropy of its scores, in [0, 1].

    0: all scores are near 0 or 1; 1: all are 0.5. An image without detections has 0.

    Args:
        scores: (N,) in [0, 1], of all detections of at least :data:`MIN_SCORE`.
    """
    chosen = np.clip(scores[scores >= MIN_SCORE].astype(np.float64), 1e-12, 1 - 1e-12)
    if len(chosen) == 0:
        return 0.0
    entropy = -chosen * np.log2(chosen) - (1 - chosen) * np.log2(1 - chosen)
    return float(entropy.mean())
