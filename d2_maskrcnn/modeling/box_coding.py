"""Box coordinates: regression deltas relative to a reference box (arXiv:1311.2524, appendix C), and clipping.

Boxes are XYXY in pixels of the network's input image. Half precision is for convolutions only: coordinates, scores
and losses are computed in float32 or better.
"""

import math

import torch

# Limit of the log scale, which keeps exp() from overflowing early in training: a side grows by 1000 / 16 at most.
SCALE_CLAMP = math.log(1000.0 / 16)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32; leave float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class BoxCoder:
    """Convert between boxes and deltas (dx, dy, dw, dh): shift of the center, logarithm of the scale.

    Args:
        weights: factors of dx, dy, dw and dh.
        scale_clamp: upper limit of dw and dh when decoding, after division by their weights.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = SCALE_CLAMP) -> None:
        self.weights = tuple(weights)
        self.scale_clamp = scale_clamp

    def encode(self, reference: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the deltas (R, 4) that turn ``reference`` (R, 4), of positive width and height, into ``target``."""
        wx, wy, ww, wh = self.weights
        width, height, x, y = _sizes_and_centers(reference)
        target_width, target_height, target_x, target_y = _sizes_and_centers(target)
        return torch.stack(
            (
                wx * (target_x - x) / width,
                wy * (target_y - y) / height,
                ww * torch.log(target_width / width),
                wh * torch.log(target_height / height),
            ),
            dim=1,
        )

    def decode(self, deltas: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Apply deltas to reference boxes.

        Args:
            deltas: (..., 4k), k boxes per reference box. reference: (..., 4).

        Returns:
            (..., 4k), not clipped; float64 where ``reference`` is float64, float32 otherwise.
        """
        wx, wy, ww, wh = self.weights
        reference = at_least_float32(reference)
        width, height, x, y = (value.unsqueeze(-1) for value in _sizes_and_centers(reference))  # each (..., 1)
        dx, dy, dw, dh = deltas.to(reference.dtype).unflatten(-1, (-1, 4)).unbind(-1)  # each (..., k)
        dw = (dw / ww).clamp(max=self.scale_clamp)
        dh = (dh / wh).clamp(max=self.scale_clamp)
        x = dx / wx * width + x
        y = dy / wy * height + y
        half_width = 0.5 * (dw.exp() * width)
        half_height = 0.5 * (dh.exp() * height)
        boxes = (x - half_width, y - half_height, x + half_width, y + half_height)
        return torch.stack(boxes, dim=-1).flatten(-2)

    # Detectron2's names of the two.
    get_deltas = encode
    apply_deltas = decode


def clip_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Limit boxes (..., 4) to an image of (height, width): x to [0, width], y to [0, height]; NaN stays NaN.

    Unlike ``Boxes.clip``, this does not check for non-finite values, which would wait for the GPU.
    """
    height, width = image_size
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)), dim=-1)


def _sizes_and_centers(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, y0, x1, y1 = boxes.unbind(-1)
    width, height = x1 - x0, y1 - y0
    return width, height, x0 + 0.5 * width, y0 + 0.5 * height
