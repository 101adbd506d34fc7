"""ROIAlign as a module and as a function."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair


def roi_align(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Call :func:`torchvision.ops.roi_align`; importing torchvision takes longer than importing PyTorch."""
    from torchvision import ops

    pooled: torch.Tensor = ops.roi_align(*args, **kwargs)
    return pooled


class ROIAlign(nn.Module):
    """Pool boxes from a feature map by bilinear sampling (Mask R-CNN, section 3)."""

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        """Store the settings.

        Args:
            output_size: bins (vertical, horizontal), or one number for both.
            spatial_scale: factor from box coordinates to feature coordinates, 1 / stride.
            sampling_ratio: samples along each side of a bin; 0 for one per feature pixel that it covers, rounded up.
            aligned: whether pixel centers have half-integer coordinates; False for Detectron's first version, which is
                off by half a pixel.
        """
        super().__init__()
        self.output_size: tuple[int, int] = _pair(output_size)
        self.spatial_scale, self.sampling_ratio, self.aligned = spatial_scale, sampling_ratio, aligned

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool each box.

        Args:
            input: (N, C, H, W).
            rois: (K, 5): index of the image in the batch, then XYXY in pixels of the network's input.

        Returns:
            (K, C, output height, output width).

        Raises:
            ValueError: ``rois`` is not (K, 5).
        """
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ValueError(f"ROIAlign needs rois of shape (K, 5), got {tuple(rois.shape)}")
        return roi_align(
            input, rois.to(input.dtype), self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows between the parentheses."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
