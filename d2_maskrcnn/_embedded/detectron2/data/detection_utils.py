"""The steps of a mapper: reading, checking, transforming annotations, building ``Instances`` and augmentations."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data._image_io import convert_image_to_rgb, convert_PIL_to_numpy, read_image
from detectron2.data.catalog import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_bbox",
    "read_image",
    "transform_instance_annotations",
]

logger = logging.getLogger(__name__)


class SizeMismatchError(ValueError):
    """An image has another size than its record says."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Checks ``height`` and ``width`` of a record against its image, and adds them where they are missing.

    Args:
        dataset_dict: the record; changed in place.
        image: (H, W, ...) array.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.get("height", height), dataset_dict.get("width", width))
    if expected != (height, width):
        name = repr(dataset_dict["file_name"]) if "file_name" in dataset_dict else "an image"
        raise SizeMismatchError(
            f"{name} is {width} x {height} pixels (width x height), but its record says {expected[1]} x {expected[0]}: "
            "mend width and height in the annotation file; boxes and masks must fit the upright image (EXIF applied)."
        )
    dataset_dict["height"], dataset_dict["width"] = height, width


def _box_to_xyxy(annotation: dict[str, Any]) -> np.ndarray:
    """The annotation's box as (1, 4) float64 XYXY in absolute coordinates."""
    box, mode = annotation["bbox"], BoxMode(annotation["bbox_mode"])
    if mode == BoxMode.XYWH_ABS:  # COCO's form, by far the most frequent: no detour through tensors
        # float32, the type boxes have in the end: so x + w is rounded as BoxMode.convert rounds it.
        xyxy = np.array([box], dtype=np.float32)
        xyxy[:, 2:] += xyxy[:, :2]
    else:
        xyxy = np.array([BoxMode.convert([float(v) for v in box], mode, BoxMode.XYXY_ABS)])
    return xyxy.astype(np.float64)


def get_bbox(annotation: dict[str, Any]) -> np.ndarray:
    """Return an annotation's box as (4,) float64 XYXY in pixels."""
    return _box_to_xyxy(annotation)[0]


def _decode_rle(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """COCO's run-length encoding, compressed or not, as an (H, W) uint8 mask of 0 and 1."""
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, height, width)
    return mask_util.decode(rle)


def _transform_segmentation(segmentation: Any, transforms: T.Transform, image_size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        # Copies: transforms work in place, and on integers they would round.
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(_decode_rle(segmentation, *segmentation["size"]))
        if tuple(mask.shape[:2]) != tuple(image_size):
            raise ValueError(
                f"a mask of size {mask.shape[:2]} after the transforms does not fit the image, {image_size}."
            )
        return mask
    raise ValueError(
        f"a segmentation must be a list of polygons or a COCO run-length encoding (dict), got "
        f"{type(segmentation).__name__}."
    )


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """Applies transforms to the box and the segmentation of one instance.

    Args:
        annotation: with ``bbox`` and ``bbox_mode``, possibly ``segmentation``; changed in place.
        transforms: what was applied to the image.
        image_size: (h, w) of the transformed image, in pixels.
        keypoint_hflip_indices: for programs written for Detectron2; keypoints are left as they are.

    Returns:
        the same dict: ``bbox`` a (4,) float64 XYXY array clipped to the image; polygons as arrays of x0, y0, x1, ...;
        a run-length encoding has become an (h, w) uint8 mask.

    Raises:
        ValueError: the segmentation is of an unknown kind, or of another size than the image.
    """
    if not isinstance(transforms, T.Transform):
        transforms = T.TransformList(list(transforms))
    height, width = image_size
    box = transforms.apply_box(_box_to_xyxy(annotation))[0]
    annotation["bbox"] = box.clip(min=0, max=[width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    return annotation


def _to_bitmap(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons, a run-length encoding or a mask as an (H, W) uint8 array of 0 and 1."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1).tolist() for polygon in segmentation]
        if not polygons:
            return np.zeros((height, width), dtype=np.uint8)
        return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width)))
    if isinstance(segmentation, dict):
        return _decode_rle(segmentation, height, width)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return (segmentation != 0).astype(np.uint8)
    raise ValueError(
        "a segmentation must be a list of polygons, a COCO run-length encoding (dict) or a 2D mask array, got "
        f"{type(segmentation).__name__}."
    )


def _to_bit_masks(segmentations: list[Any], height: int, width: int) -> BitMasks:
    masks = torch.empty((len(segmentations), height, width), dtype=torch.uint8)  # (N, H, W)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        bitmap = _to_bitmap(segmentation, height, width)
        if bitmap.shape != (height, width):
            raise ValueError(f"a mask of shape {bitmap.shape} does not fit an image of (h, w) {(height, width)}.")
        # By PyTorch: decoded masks are in column order, and NumPy is many times slower at turning that around.
        mask.copy_(torch.from_numpy(bitmap))
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
    """Ground truth of one image in the form that models take.

    Args:
        annos: with ``bbox``, ``bbox_mode``, ``category_id`` and possibly ``segmentation``, as
            :func:`transform_instance_annotations` leaves them.
        image_size: (h, w) of the image, in pixels.
        mask_format: ``"polygon"`` or ``"bitmask"``: the class of ``gt_masks``.

    Returns:
        ``Instances`` with ``gt_boxes`` (XYXY in the image's frame), ``gt_classes`` (int64) and, where the annotations
        have segmentations, ``gt_masks``.

    Raises:
        ValueError: the mask format is unknown, the segmentations cannot be brought into it, or some annotations lack
            one.
    """
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f"mask_format must be 'polygon' or 'bitmask', got {mask_format!r}.")
    target = Instances(image_size)
    boxes = np.concatenate([_box_to_xyxy(anno) for anno in annos]) if annos else np.zeros((0, 4))
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
    """Leaves out instances that have no area.

    Args:
        instances: with ``gt_boxes`` and possibly ``gt_masks``.
        by_box: those whose box's width or height is not above ``box_threshold``.
        by_mask: those whose mask is empty.
        box_threshold: in pixels.
        return_mask: return also which ones were kept.

    Returns:
        the kept instances; with ``return_mask`` also a (N,) bool tensor.

    Raises:
        ValueError: neither ``by_box`` nor ``by_mask``.
    """
    if not by_box and not by_mask:
        raise ValueError("filter_empty_instances needs by_box, by_mask or both.")
    kept = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        kept &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty()
    filtered = instances if bool(kept.all()) else instances[kept]  # masks are large: no copy without need
    return (filtered, kept) if return_mask else filtered


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The default augmentations: scaling of the shorter edge and, for training, a flip.

    Args:
        cfg: ``INPUT.MIN_SIZE_*``, ``INPUT.MAX_SIZE_*``, ``INPUT.MIN_SIZE_TRAIN_SAMPLING``, ``INPUT.RANDOM_FLIP``.
        is_train: training, not inference.

    Raises:
        ValueError: ``INPUT.RANDOM_FLIP`` is neither "horizontal" nor "vertical" nor "none".
    """
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP must be 'horizontal', 'vertical' or 'none', got {flip!r}.")
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


build_transform_gen = build_augmentation  # the older name


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> T.CropTransform:
    """A random crop that holds the centre of an instance's box.

    Args:
        crop_size: (h, w) in pixels.
        image_size: (h, w) in pixels.
        instance: an annotation with ``bbox`` and ``bbox_mode``.

    Raises:
        ValueError: the crop is larger than the image, or the box's centre is outside the image.
    """
    crop, image = np.asarray(crop_size, dtype=int), np.asarray(image_size, dtype=int)
    x0, y0, x1, y1 = _box_to_xyxy(instance)[0]
    center = np.array([(y0 + y1) / 2, (x0 + x1) / 2])
    if (crop > image).any():
        raise ValueError(f"a crop of (h, w) {tuple(crop_size)} is larger than the image, {tuple(image_size)}.")
    if (center < 0).any() or (center > image).any():
        raise ValueError(f"the box {instance['bbox']} has its centre outside the image of (h, w) {tuple(image_size)}.")
    lowest = np.maximum(np.floor(center).astype(int) - crop, 0)
    highest = np.minimum(np.maximum(image - crop, 0), np.ceil(center).astype(int))
    top = np.random.randint(lowest[0], highest[0] + 1)
    left = np.random.randint(lowest[1], highest[1] + 1)
    return T.CropTransform(int(left), int(top), int(crop[1]), int(crop[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Checks that datasets that are used together agree on one attribute of their metadata.

    Raises:
        AttributeError: a dataset does not have it.
        ValueError: two datasets differ.
    """
    first: Any = None
    for position, name in enumerate(dataset_names):
        value = getattr(MetadataCatalog.get(name), key)
        if position == 0:
            first = value
        elif value != first:
            raise ValueError(
                f"datasets {dataset_names[0]!r} and {name!r} cannot be used together: their {key} are "
                f"{reprlib.repr(first)} and {reprlib.repr(value)}."
            )


__getattr__ = lookup(__name__)
