"""Create the ground truth of an image from its annotations."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

__all__ = ["annotations_to_instances", "box_to_xyxy", "decode_rle", "filter_empty_instances"]

logger = logging.getLogger(__name__)


def box_to_xyxy(annotation: dict[str, Any]) -> np.ndarray:
    """Return the annotation's box as (1, 4) float64 XYXY in pixels."""
    box, mode = annotation["bbox"], BoxMode(annotation["bbox_mode"])
    if mode == BoxMode.XYWH_ABS:  # COCO's mode, by far the most frequent: tensors would be slower
        # In float32, so that x + w is rounded as by BoxMode.convert.
        xyxy = np.array([box], dtype=np.float32)
        xyxy[:, 2:] += xyxy[:, :2]
    else:
        xyxy = np.array([BoxMode.convert([float(v) for v in box], mode, BoxMode.XYXY_ABS)])
    return xyxy.astype(np.float64)


def decode_rle(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Decode COCO's run-length encoding, compressed or not, to an (H, W) uint8 mask of 0 and 1."""
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, height, width)
    return mask_util.decode(rle)


def _to_bitmap(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Convert polygons, a run-length encoding or a mask to an (H, W) uint8 array of 0 and 1."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1).tolist() for polygon in segmentation]
        if not polygons:
            return np.zeros((height, width), dtype=np.uint8)
        return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width)))
    if isinstance(segmentation, dict):
        return decode_rle(segmentation, height, width)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return (segmentation != 0).astype(np.uint8)
    raise ValueError(
        "a segmentation must be a list of polygons, a COCO run-length encoding (dict) or a 2D mask array, got "
        f"{type(segmentation).__name__}."
    )


def _to_bit_masks(segmentations: list[Any], height: int, width: int) -> BitMasks:
    import cv2  # imported here, since polygons do not need OpenCV

    first = _to_bitmap(segmentations[0], height, width)
    if first.shape != (height, width):  # Detectron2 keeps such masks
        logger.warning("Masks of shape %s do not fit their image of (h, w) %s", first.shape, (height, width))
    masks = torch.empty((len(segmentations), *first.shape), dtype=torch.uint8)  # (N, H, W)
    for index, (mask, segmentation) in enumerate(zip(masks, segmentations, strict=True)):
        bitmap = _to_bitmap(segmentation, height, width) if index > 0 else first
        if bitmap.shape != first.shape:
            raise ValueError(f"the masks of an image have different shapes: {first.shape} and {bitmap.shape}.")
        if bitmap.flags.c_contiguous or bitmap.size == 0:
            mask.copy_(torch.from_numpy(bitmap))
        else:  # decoded masks are in column order, which OpenCV changes in a fraction of the time of PyTorch and NumPy
            cv2.transpose(bitmap.T, dst=mask.numpy())
    return BitMasks(masks.view(torch.bool))  # all values are 0 or 1


def _to_polygon_masks(segmentations: list[Any]) -> PolygonMasks:
    for segmentation in segmentations:
        if not isinstance(segmentation, list):
            raise ValueError(
                f"mask format 'polygon' needs polygons, but an annotation has a {type(segmentation).__name__} (a "
                "run-length encoding or mask): use INPUT.MASK_FORMAT 'bitmask'."
            )
    return PolygonMasks(segmentations)


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Create the ground truth of one image.

    Args:
        annos: with ``bbox``, ``bbox_mode``, ``category_id`` and possibly ``segmentation``, as
            :func:`transform_instance_annotations` returns them.
        image_size: (h, w) of the image, in pixels.
        mask_format: ``"polygon"`` or ``"bitmask"``: the class of ``gt_masks``.

    Returns:
        ``Instances`` with ``gt_boxes`` (XYXY in the frame of the image), ``gt_classes`` (int64) and, if the annotations
        have segmentations, ``gt_masks``.

    Raises:
        ValueError: the mask format is unknown, the segmentations cannot be converted to it, or only some annotations
            have one.
    """
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f"mask_format must be 'polygon' or 'bitmask', got {mask_format!r}.")
    target = Instances(image_size)
    boxes = np.concatenate([box_to_xyxy(anno) for anno in annos]) if annos else np.zeros((0, 4))
    target.gt_boxes = Boxes(boxes.astype(np.float32))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    with_masks = sum("segmentation" in anno for anno in annos)
    if with_masks not in (0, len(annos)):
        raise ValueError(
            f"only {with_masks} of {len(annos)} annotations of an image have a segmentation: give all or none."
        )
    if with_masks:
        segmentations = [anno["segmentation"] for anno in annos]
        polygons = mask_format == "polygon"
        target.gt_masks = _to_polygon_masks(segmentations) if polygons else _to_bit_masks(segmentations, *image_size)
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Remove instances that have no area.

    Args:
        instances: with ``gt_boxes`` and possibly ``gt_masks``.
        by_box: whether instances with a box of width or height up to ``box_threshold`` are removed.
        by_mask: whether instances with an empty mask are removed.
        box_threshold: in pixels.
        return_mask: whether the selection is returned as well.

    Returns:
        the remaining instances; with ``return_mask`` also a (N,) bool tensor of the selection.

    Raises:
        ValueError: neither ``by_box`` nor ``by_mask`` is set.
    """
    if not by_box and not by_mask:
        raise ValueError("filter_empty_instances needs by_box, by_mask or both.")
    kept = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        kept &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty()
    filtered = instances if bool(kept.all()) else instances[kept]  # masks are large, so avoid a copy
    return (filtered, kept) if return_mask else filtered
