"""Detections whose masks stay small until somebody asks for them as images."""

from typing import Any

import torch

from d2_maskrcnn.structures.lazy_masks import MASK_THRESHOLD, BoxMasks
from d2_maskrcnn.structures.mask_pasting import paste_masks
from detectron2.structures import Instances


class MaskInstances(Instances):
    """Instances with the further fields ``pred_masks`` and ``pred_masks_rle``, which are made when they are read.

    ``pred_masks`` is what users of Detectron2 expect, (N, H, W) bool on the device of the model; it is kept once made.
    ``pred_masks_rle``, COCO's run-length code, and :attr:`box_masks` never need whole images: the embedded engine's
    COCO evaluator asks for the first, drawing for the second.
    """

    _small: tuple[torch.Tensor, torch.Tensor] | None = None  # (N, 4) XYXY boxes, (N, S, S) probabilities inside them
    _threshold: float = MASK_THRESHOLD

    @classmethod
    def of(
        cls, instances: Instances, probabilities: torch.Tensor, threshold: float = MASK_THRESHOLD
    ) -> "MaskInstances":
        """Adds masks to ``instances``.

        Args:
            instances: with ``pred_boxes``, in the frame of the output image; without ``pred_masks``.
            probabilities: (N, S, S) in [0, 1], inside the boxes. threshold: from which on a pixel belongs to a mask.
        """
        return cls._wrap(instances, (instances.pred_boxes.tensor, probabilities), threshold)

    @classmethod
    def _wrap(
        cls, instances: Instances, small: tuple[torch.Tensor, torch.Tensor] | None, threshold: float
    ) -> "MaskInstances":
        result = cls(instances.image_size)
        result._fields = dict(instances.get_fields())
        result._small, result._threshold = small, threshold
        return result

    @property
    def box_masks(self) -> BoxMasks | None:
        """The masks as probabilities inside their boxes, on the CPU; None if ``pred_masks`` was set."""
        if self._small is None:
            return None
        boxes, probabilities = (tensor.detach().float().cpu().numpy() for tensor in self._small)
        return BoxMasks(boxes, probabilities, self.image_size, self._threshold)

    def has(self, name: str) -> bool:
        """Whether there is a field of this name."""
        return super().has(name) or (name in ("pred_masks", "pred_masks_rle") and self._small is not None)

    def get(self, name: str) -> Any:
        """The field of this name; KeyError if there is none."""
        self._make(name)
        if name == "pred_masks_rle" and self._small is not None:
            assert self.box_masks is not None
            return self.box_masks.rles()
        return super().get(name)

    def __getattr__(self, name: str) -> Any:
        if name in ("pred_masks", "pred_masks_rle") and self.has(name):
            return self.get(name)
        return super().__getattr__(name)

    def get_fields(self) -> dict[str, Any]:
        """The fields by name, ``pred_masks`` included. Changing this dict changes the instances."""
        self._make("pred_masks")
        return super().get_fields()

    def set(self, name: str, value: Any) -> None:
        """Adds a field or replaces it."""
        if name == "pred_masks":
            self._small = None
        super().set(name, value)

    def remove(self, name: str) -> None:
        """Takes a field away; KeyError if there is none."""
        if name == "pred_masks" and self._small is not None:
            self._small = None
            self._fields.pop(name, None)
            return
        super().remove(name)

    def to(self, *args: Any, **kwargs: Any) -> "MaskInstances":
        """New instances whose fields went through their own ``.to(...)``; masks that are small stay so."""
        small = self._small
        moved = None if small is None else (small[0].to(*args, **kwargs), small[1].to(*args, **kwargs))
        return self._wrap(super().to(*args, **kwargs), moved, self._threshold)

    def __getitem__(self, item: Any) -> "MaskInstances":
        """New instances with the same pick from every field; an integer gives one instance."""
        picked = super().__getitem__(item)
        small = self._small
        if small is not None:
            part = slice(item, item + 1 or None) if isinstance(item, int) else item
            small = (small[0][part], small[1][part])
        return self._wrap(picked, small, self._threshold)

    def _make(self, name: str) -> None:
        """Pastes the masks, if they are asked for and not there yet."""
        if name == "pred_masks" and self._small is not None and name not in self._fields:
            boxes, probabilities = self._small
            height, width = self.image_size
            self._fields[name] = paste_masks(probabilities, boxes, height, width, self._threshold)
