"""Boxes relative to a reference box (arXiv:1311.2524, appendix C): shift of the centre, logarithm of the scale."""

import math

import torch

from d2_maskrcnn.modeling.precision import at_least_float32

# exp() of a bigger log scale would overflow early in training: a 16 pixels wide box can become 1000 pixels wide, no
# more.
SCALE_CLAMP = math.log(1000.0 / 16)


class BoxCoder:
    """Converts between boxes (XYXY) and deltas (dx, dy, dw, dh), each multiplied by its weight."""

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = SCALE_CLAMP) -> None:
        self.weights = tuple(weights)
        self.scale_clamp = scale_clamp

    def encode(self, reference: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Deltas (R, 4) that turn ``reference`` (R, 4), of positive width and height, into ``target`` (R, 4)."""
        wx, wy, ww, wh = self.weights
        width, height, x, y = _sizes_and_centres(reference)
        target_width, target_height, target_x, target_y = _sizes_and_centres(target)
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
        """Applies deltas (..., 4k), k boxes for each reference box (..., 4). Returns float32 boxes (..., 4k), not
        clipped.
        """
        wx, wy, ww, wh = self.weights
        reference = at_least_float32(reference)
        width, height, x, y = (value.unsqueeze(-1) for value in _sizes_and_centres(reference))  # each (..., 1)
        dx, dy, dw, dh = deltas.to(reference.dtype).unflatten(-1, (-1, 4)).unbind(-1)  # each (..., k)
        dw = (dw / ww).clamp(max=self.scale_clamp)
        dh = (dh / wh).clamp(max=self.scale_clamp)
        x = dx / wx * width + x
        y = dy / wy * height + y
        half_width = 0.5 * (dw.exp() * width)
        half_height = 0.5 * (dh.exp() * height)
        boxes = (x - half_width, y - half_height, x + half_width, y + half_height)
        return torch.stack(boxes, dim=-1).flatten(-2)


def clip_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Boxes (..., 4) limited to an image of (height, width): x to [0, width], y to [0, height].

    ``Boxes.clip`` looks at every value first, for which a GPU has to be waited for; here NaN just stays NaN.
    """
    height, width = image_size
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)), dim=-1)


def _sizes_and_centres(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, y0, x1, y1 = boxes.unbind(-1)
    width, height = x1 - x0, y1 - y0
    return width, height, x0 + 0.5 * width, y0 + 0.5 * height
