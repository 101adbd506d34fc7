"""Training images as ``D2_MASKRCNN.INPUT`` asks for them: large-scale jitter and copy-paste.

Ghiasi et al. 2021, "Simple copy-paste is a strong data augmentation method for instance segmentation",
arXiv:2012.07177, section 3.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.data.loader import Records, ResumableTrainLoader
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

Record = dict[str, Any]
MIN_PIXELS = 4  # an object of which pasted ones leave less is no example of its class


def build_train_mapper(cfg: CfgNode) -> MaskRCNNMapper:
    """Detectron2's augmentations, or large-scale jitter in their place.

    Large-scale jitter scales the image by a random factor around ``IMAGE_SIZE`` and cuts or pads it to a square of
    that size.

    Raises:
        UserError: the range of scales is none.
    """
    node = cfg.D2_MASKRCNN.INPUT.LSJ
    if not node.ENABLED:
        return MaskRCNNMapper(cfg, is_train=True)
    if not 0 < node.MIN_SCALE <= node.MAX_SCALE or node.IMAGE_SIZE < 1:
        raise UserError(
            f"D2_MASKRCNN.INPUT.LSJ has MIN_SCALE {node.MIN_SCALE}, MAX_SCALE {node.MAX_SCALE} and IMAGE_SIZE "
            f"{node.IMAGE_SIZE}: expected 0 < MIN_SCALE <= MAX_SCALE and a size in pixels."
        )
    size = node.IMAGE_SIZE
    augmentations = [T.ResizeScale(node.MIN_SCALE, node.MAX_SCALE, size, size), T.FixedSizeCrop((size, size))]
    if cfg.INPUT.RANDOM_FLIP != "none":
        horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    return MaskRCNNMapper(cfg, is_train=True, augmentations=augmentations, recompute_boxes=cfg.MODEL.MASK_ON)


def add_copy_paste(cfg: CfgNode, loader: ResumableTrainLoader) -> None:
    """Lets ``loader`` paste objects of other images where ``D2_MASKRCNN.INPUT.COPY_PASTE`` is enabled.

    Raises:
        UserError: masks are polygons, which cannot have pieces cut out, or the probability is none.
    """
    node = cfg.D2_MASKRCNN.INPUT.COPY_PASTE
    if not node.ENABLED:
        return
    if cfg.INPUT.MASK_FORMAT != "bitmask" or not cfg.MODEL.MASK_ON:
        raise UserError(
            f"D2_MASKRCNN.INPUT.COPY_PASTE needs masks as bitmaps: set INPUT.MASK_FORMAT to bitmask (it is "
            f"{cfg.INPUT.MASK_FORMAT}) and MODEL.MASK_ON to True (it is {cfg.MODEL.MASK_ON})."
        )
    if not 0 <= node.PROBABILITY <= 1:
        raise UserError(f"D2_MASKRCNN.INPUT.COPY_PASTE.PROBABILITY is {node.PROBABILITY}; expected 0 to 1.")
    loader.mapper = CopyPaste(loader.mapper, loader.records, node.PROBABILITY)


class CopyPaste:
    """A mapper that pastes a random part of the objects of another image onto the one it maps.

    It draws from NumPy's global generator, as Detectron2's augmentations do.

    Args:
        mapper: makes ``image`` (C, H, W) and ``instances`` with ``gt_masks`` as BitMasks.
        records: where the other image is taken from.
        probability: of pasting at all, in [0, 1].
    """

    def __init__(self, mapper: Callable[[Record], Record], records: Records, probability: float) -> None:
        self.mapper, self.records, self.probability = mapper, records, probability

    def __call__(self, record: Record) -> Record:
        """The mapped record, perhaps with more objects."""
        sample = self.mapper(record)
        if np.random.rand() >= self.probability:
            return sample
        other = self.mapper(self.records[int(np.random.randint(len(self.records)))])  # type: ignore[arg-type]
        chosen = np.flatnonzero(np.random.rand(len(other["instances"])) < 0.5)
        if len(chosen) == 0:
            return sample
        return paste(sample, other, torch.from_numpy(chosen))


def paste(sample: Record, other: Record, chosen: torch.Tensor) -> Record:
    """Pastes objects at the place that they have in their own image; what lies outside of this one is cut off.

    Args:
        sample, other: with ``image`` and ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_masks``).
        chosen: (n,) indices of ``other``'s objects.

    Returns:
        ``sample`` with a new ``image`` and ``instances``: its own objects without the pixels that are covered, then the
        pasted ones. Objects of which less than ``MIN_PIXELS`` are left are dropped.
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
    left = merged.flatten(1).sum(dim=1) >= MIN_PIXELS
    bitmaps = BitMasks(merged[left])
    instances = Instances(
        (height, width), gt_boxes=bitmaps.get_bounding_boxes(), gt_classes=classes[left], gt_masks=bitmaps
    )
    return {**sample, "image": image, "instances": instances}
