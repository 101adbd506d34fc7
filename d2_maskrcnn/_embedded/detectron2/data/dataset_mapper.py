"""Convert records of a dataset to inputs of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

__all__ = ["DatasetMapper"]


class DatasetMapper:
    """Read a record's image, augment it together with its annotations, and convert both to tensors.

    The record needs ``file_name``. The result has all of its entries except ``annotations`` and ``sem_seg_file_name``,
    and:

    * ``image``: (C, H, W) uint8 tensor in ``image_format``, [0, 255], the network's input;
    * ``height``, ``width``: of the original image, to which predictions are scaled back;
    * ``instances`` (training): ``Instances`` with ``gt_boxes``, ``gt_classes`` and ``gt_masks`` in the frame of
    ``image``,
      without crowd regions and empty instances;
    * ``sem_seg`` (training, if the record has ``sem_seg_file_name``): (H, W) int64 labels.

    Args:
        is_train: False drops the annotations.
        augmentations: applied in this order.
        image_format: a format of :func:`detectron2.data.detection_utils.read_image`.
        use_instance_mask: False ignores segmentations.
        instance_mask_format: ``"polygon"`` or ``"bitmask"``.
        use_keypoint, keypoint_hflip_indices, precomputed_proposal_topk: for programs written for Detectron2; this
            engine supports neither keypoints nor precomputed proposals.
        recompute_boxes: whether boxes are computed from the augmented masks (a crop cuts masks, but only clips boxes).

    Raises:
        ValueError: ``recompute_boxes`` is set without ``use_instance_mask``, or keypoints or proposals are requested.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        if use_keypoint or precomputed_proposal_topk:
            raise ValueError("this engine's DatasetMapper supports neither use_keypoint nor precomputed_proposal_topk")
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes needs use_instance_mask: boxes are computed from masks.")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.recompute_boxes = recompute_boxes
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info("Augmentations in %s: %s", mode, list(augmentations))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments from ``INPUT`` and ``MODEL.MASK_ON``.

        Raises:
            ValueError: the config requests keypoints or precomputed proposals.
        """
        for key, value in (("KEYPOINT_ON", cfg.MODEL.KEYPOINT_ON), ("LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS)):
            if value:
                raise ValueError(
                    f"MODEL.{key} is True, but this engine's DatasetMapper does not support it: set it to False."
                )
        augmentations = utils.build_augmentation(cfg, is_train)
        crop = cfg.INPUT.CROP.ENABLED and is_train
        if crop:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "recompute_boxes": bool(crop and cfg.MODEL.MASK_ON),
        }

    def _to_instances(
        self, annotations: list[dict[str, Any]], transforms: T.Transform, image_size: tuple[int, int]
    ) -> Any:
        unused = {"keypoints"} if self.use_instance_mask else {"keypoints", "segmentation"}
        transformed = [
            utils.transform_instance_annotations(
                {key: value for key, value in anno.items() if key not in unused}, transforms, image_size
            )
            for anno in annotations
            if not anno.get("iscrowd", 0)
        ]
        instances = utils.annotations_to_instances(transformed, image_size, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Convert one record, which is not modified.

        Raises:
            FileNotFoundError, OSError: the image is missing or broken.
            SizeMismatchError: the image has another size than its record.
        """
        result = dict(dataset_dict)
        annotations = result.pop("annotations", None)
        labels_file = result.pop("sem_seg_file_name", None)
        image = utils.read_image(result["file_name"], format=self.image_format)
        utils.check_image_size(result, image)

        labels = None
        if labels_file is not None and self.is_train:
            labels = utils.read_image(labels_file, "L").squeeze(2)
        aug_input = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(aug_input)

        result["image"] = torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy())  # (C, H, W)
        if aug_input.sem_seg is not None:
            result["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))  # (H, W)
        if self.is_train and annotations is not None:
            result["instances"] = self._to_instances(annotations, transforms, aug_input.image.shape[:2])
        return result
