"""Detectron2's Instances with masks that are pasted into whole images only when they are read."""

from typing import Any

import torch

from d2_maskrcnn.structures.lazy_masks import BoxMasks
from d2_maskrcnn.structures.mask_pasting import MASK_THRESHOLD, paste_masks
from detectron2.structures import Instances


class MaskInstances(Instances):
    """Instances with the additional fields ``pred_masks`` and ``pred_masks_rle``, computed when they are read.

    ``pred_masks`` is what Detectron2's users expect: (N, H, W) bool on the model's device; it is cached. The evaluator
    of the embedded engine reads ``pred_masks_rle``, compressed RLEs, and drawing reads :attr:`box_masks`; neither makes
    whole images.
    """

    _small: tuple[torch.Tensor, torch.Tensor] | None = None  # (N, 4) XYXY boxes, (N, S, S) probabilities in them
    _threshold: float = MASK_THRESHOLD

    @classmethod
    def from_probabilities(
        cls, instances: Instances, probabilities: torch.Tensor, threshold: float = MASK_THRESHOLD
    ) -> "MaskInstances":
        """Return ``instances`` with masks.

        Args:
            instances: with ``pred_boxes`` in the frame of the output image, without ``pred_masks``.
            probabilities: (N, S, S) in [0, 1], inside the boxes.
            threshold: probability at or above which a pixel belongs to a mask, in (0, 1].
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
        """Return whether there is a field of this name."""
        return super().has(name) or (name in ("pred_masks", "pred_masks_rle") and self._small is not None)

    def get(self, name: str) -> Any:
        """Return the field of this name.

        Raises:
            KeyError: there is no such field.
        """
        self._paste(name)
        masks = self.box_masks if name == "pred_masks_rle" else None
        return super().get(name) if masks is None else masks.rles()

    def __getattr__(self, name: str) -> Any:
        if name in ("pred_masks", "pred_masks_rle") and self.has(name):
            return self.get(name)
        return super().__getattr__(name)

    def get_fields(self) -> dict[str, Any]:
        """Return the fields by name, including ``pred_masks``. Changes of this dict change the instances."""
        self._paste("pred_masks")
        return super().get_fields()

    def set(self, name: str, value: Any) -> None:
        """Add a field or replace it."""
        if name == "pred_masks":
            self._small = None
        super().set(name, value)

    def remove(self, name: str) -> None:
        """Remove a field.

        Raises:
            KeyError: there is no such field.
        """
        if name == "pred_masks" and self._small is not None:
            self._small = None
            self._fields.pop(name, None)
            return
        super().remove(name)

    def to(self, *args: Any, **kwargs: Any) -> "MaskInstances":
        """Return new instances with each field's ``.to(...)``; masks are not pasted."""
        small = self._small
        moved = None if small is None else (small[0].to(*args, **kwargs), small[1].to(*args, **kwargs))
        return self._wrap(super().to(*args, **kwargs), moved, self._threshold)

    def __getitem__(self, item: Any) -> "MaskInstances":
        """Index every field; an integer gives one instance."""
        selected = super().__getitem__(item)
        small = self._small
        if small is not None:
            part = slice(item, item + 1 or None) if isinstance(item, int) else item
            small = (small[0][part], small[1][part])
        return self._wrap(selected, small, self._threshold)

    def _paste(self, name: str) -> None:
        """Paste the masks if ``name`` is their field and they have not been pasted yet."""
        if name == "pred_masks" and self._small is not None and name not in self._fields:
            boxes, probabilities = self._small
            self._fields[name] = paste_masks(probabilities, boxes, *self.image_size, self._threshold)
