"""Build the training augmentations: Detectron2's, or large-scale jitter, and copy-paste.

Ghiasi et al. 2021, "Simple copy-paste is a strong data augmentation method for instance segmentation",
arXiv:2012.07177, section 3.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.config.validation import check_value
from d2_maskrcnn.data.mapper import MaskRCNNMapper, Record
from d2_maskrcnn.data.raw_images import raw_channels
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

MIN_PIXELS = 4  # objects with fewer visible pixels after pasting are dropped


def build_train_mapper(cfg: CfgNode) -> MaskRCNNMapper:
    """Build the mapper of the training: Detectron2's augmentations, or large-scale jitter if it is enabled.

    Large-scale jitter scales the image by a random factor relative to ``IMAGE_SIZE`` and crops or pads it to a square
    of that size. It replaces the resizing and cropping of ``INPUT``; the random flip stays.

    Raises:
        UserError: the scale range is empty.
    """
    node = cfg.D2_MASKRCNN.INPUT.LSJ
    if not node.ENABLED:
        return MaskRCNNMapper(cfg, is_train=True)
    if node.MIN_SCALE > node.MAX_SCALE:
        raise UserError(
            f"D2_MASKRCNN.INPUT.LSJ has MIN_SCALE {node.MIN_SCALE} and MAX_SCALE {node.MAX_SCALE}; expected MIN_SCALE "
            "<= MAX_SCALE."
        )
    size = node.IMAGE_SIZE
    padding = float(np.mean(cfg.MODEL.PIXEL_MEAN)) if raw_channels(cfg) else 128.0
    augmentations = [
        T.ResizeScale(node.MIN_SCALE, node.MAX_SCALE, size, size),
        T.FixedSizeCrop((size, size), pad_value=padding),
    ]
    if cfg.INPUT.RANDOM_FLIP != "none":
        horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    return MaskRCNNMapper(cfg, is_train=True, augmentations=augmentations, recompute_boxes=cfg.MODEL.MASK_ON)


def add_copy_paste(cfg: CfgNode, mapper: Callable[[Record], Record], records: Any) -> Callable[[Record], Record]:
    """Wrap ``mapper`` in :class:`CopyPaste` if ``D2_MASKRCNN.INPUT.COPY_PASTE`` is enabled.

    Args:
        cfg: the config.
        mapper: maps a record to ``image`` and ``instances``.
        records: sequence of the records from which objects are copied.

    Raises:
        UserError: masks are not bitmaps (pieces cannot be cut out of polygons), or the probability is not in [0, 1].
    """
    node = cfg.D2_MASKRCNN.INPUT.COPY_PASTE
    if not node.ENABLED:
        return mapper
    if cfg.INPUT.MASK_FORMAT != "bitmask" or not cfg.MODEL.MASK_ON:
        raise UserError(
            f"D2_MASKRCNN.INPUT.COPY_PASTE needs masks as bitmaps: set INPUT.MASK_FORMAT to bitmask (it is "
            f"{cfg.INPUT.MASK_FORMAT}) and MODEL.MASK_ON to True (it is {cfg.MODEL.MASK_ON})."
        )
    check_value("D2_MASKRCNN.INPUT.COPY_PASTE.PROBABILITY", node.PROBABILITY, default=0.5)
    return CopyPaste(mapper, records, node.PROBABILITY)


class CopyPaste:
    """Mapper that pastes a random subset of another image's objects onto the mapped image.

    It uses NumPy's global generator, as Detectron2's augmentations do.

    Args:
        mapper: maps a record to ``image`` (C, H, W) and ``instances`` with ``gt_masks`` as BitMasks.
        records: sequence of the records from which the other image is chosen.
        probability: probability of pasting, in [0, 1].
    """

    def __init__(self, mapper: Callable[[Record], Record], records: Any, probability: float) -> None:
        self.mapper, self.records, self.probability = mapper, records, probability

    def __call__(self, record: Record) -> Record:
        """Map ``record`` and paste objects with the given probability."""
        sample = self.mapper(record)
        if np.random.rand() >= self.probability:
            return sample
        other = self.mapper(self.records[int(np.random.randint(len(self.records)))])
        chosen = np.flatnonzero(np.random.rand(len(other["instances"])) < 0.5)
        if len(chosen) == 0:
            return sample
        return paste(sample, other, torch.from_numpy(chosen))


def paste(sample: Record, other: Record, chosen: torch.Tensor) -> Record:
    """Paste objects at their own position (the images' top left corners coincide), clipped to the target image.

    Args:
        sample: the target, with ``image`` (C, H, W) and ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_masks``).
        other: the source, with the same keys; may have another size.
        chosen: (n,) int64 indices of the instances of ``other``.

    Returns:
        ``sample`` with a new ``image`` and ``instances``: its own objects without the covered pixels, then the pasted
        ones. Objects with fewer than ``MIN_PIXELS`` pixels left are dropped.
    """
    image, source = sample["image"].clone(), other["image"]
    height, width = image.shape[1:]
    rows, columns = min(height, source.shape[1]), min(width, source.shape[2])
    masks = torch.zeros((len(chosen), height, width), dtype=torch.bool)
    masks[:, :rows, :columns] = other["instances"].gt_masks.tensor[chosen, :rows, :columns]
    covered = masks.any(dim=0)  # (H, W)
    area = covered[:rows, :columns]
    image[:, :rows, :columns][:, area] = source[:, :rows, :columns][:, area]
    own = sample["instances"].gt_masks.tensor & ~covered
    merged = torch.cat([own, masks])
    classes = torch.cat([sample["instances"].gt_classes, other["instances"].gt_classes[chosen]])
    kept = merged.flatten(1).sum(dim=1) >= MIN_PIXELS
    bitmaps = BitMasks(merged[kept])
    instances = Instances(
        (height, width), gt_boxes=bitmaps.get_bounding_boxes(), gt_classes=classes[kept], gt_masks=bitmaps
    )
    return {**sample, "image": image, "instances": instances}
