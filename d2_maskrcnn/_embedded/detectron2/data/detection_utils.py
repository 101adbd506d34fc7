"""Steps of a mapper: read, check, transform annotations, create ``Instances``, build augmentations."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2._errors import InvalidArgumentError
from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data._image_io import convert_image_to_rgb, convert_PIL_to_numpy, read_image
from detectron2.data._instances import annotations_to_instances, box_to_xyxy, decode_rle, filter_empty_instances
from detectron2.data.catalog import MetadataCatalog
from detectron2.structures import BoxMode

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
    """An image has another size than its record."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Check ``height`` and ``width`` of a record against its image, and add them if they are missing.

    Args:
        dataset_dict: the record; modified in place.
        image: (H, W, ...) array.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.get("height", height), dataset_dict.get("width", width))
    if expected != (height, width):
        name = repr(dataset_dict["file_name"]) if "file_name" in dataset_dict else "an image"
        raise SizeMismatchError(
            f"{name} is {width} x {height} pixels (width x height), but its record has {expected[1]} x {expected[0]}: "
            "fix width and height in the annotation file; boxes and masks must fit the upright image (EXIF applied)."
        )
    dataset_dict["height"], dataset_dict["width"] = height, width


def get_bbox(annotation: dict[str, Any]) -> np.ndarray:
    """Return an annotation's box as (4,) float64 XYXY in pixels."""
    return box_to_xyxy(annotation)[0]


def _transform_segmentation(segmentation: Any, transforms: T.Transform, image_size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        # Copies, since transforms work in place; as floats, since they would round integers.
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(decode_rle(segmentation, *segmentation["size"]))
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
    """Apply transforms to the box and the segmentation of one instance.

    Args:
        annotation: with ``bbox`` and ``bbox_mode``, possibly ``segmentation``; modified in place.
        transforms: those applied to the image.
        image_size: (h, w) of the transformed image, in pixels.
        keypoint_hflip_indices: for programs written for Detectron2; keypoints are left as they are.

    Returns:
        the same dict: ``bbox`` a (4,) float64 XYXY array clipped to the image; polygons as arrays of x0, y0, x1, ...; a
        run-length encoding as an (h, w) uint8 mask.

    Raises:
        ValueError: the segmentation is of an unknown kind, or of another size than the image.
    """
    if not isinstance(transforms, T.Transform):
        transforms = T.TransformList(list(transforms))
    height, width = image_size
    box = transforms.apply_box(box_to_xyxy(annotation))[0]
    annotation["bbox"] = box.clip(min=0, max=[width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    return annotation


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build the default augmentations: scaling of the shorter edge and, in training, a flip.

    Args:
        cfg: ``INPUT.MIN_SIZE_*``, ``INPUT.MAX_SIZE_*``, ``INPUT.MIN_SIZE_TRAIN_SAMPLING``, ``INPUT.RANDOM_FLIP``.
        is_train: whether they are for training.

    Raises:
        ValueError: ``INPUT.RANDOM_FLIP`` is not "horizontal", "vertical" or "none".
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
    """Return a random crop that contains the center of an instance's box.

    Args:
        crop_size: (h, w) in pixels.
        image_size: (h, w) in pixels.
        instance: an annotation with ``bbox`` and ``bbox_mode``.

    Raises:
        ValueError: the crop is larger than the image, or the center of the box is outside the image.
    """
    crop, image = np.asarray(crop_size, dtype=int), np.asarray(image_size, dtype=int)
    x0, y0, x1, y1 = box_to_xyxy(instance)[0]
    center = np.array([(y0 + y1) / 2, (x0 + x1) / 2])
    if (crop > image).any():
        raise InvalidArgumentError(
            f"a crop of (h, w) {tuple(crop_size)} is larger than the image, {tuple(image_size)}."
        )
    if (center < 0).any() or (center > image).any():
        raise InvalidArgumentError(
            f"the box {instance['bbox']} has its center outside the image of (h, w) {tuple(image_size)}."
        )
    lowest = np.maximum(np.floor(center).astype(int) - crop, 0)
    highest = np.minimum(np.maximum(image - crop, 0), np.ceil(center).astype(int))
    top = np.random.randint(lowest[0], highest[0] + 1)
    left = np.random.randint(lowest[1], highest[1] + 1)
    return T.CropTransform(int(left), int(top), int(crop[1]), int(crop[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that datasets which are used together agree in one attribute of their metadata.

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
