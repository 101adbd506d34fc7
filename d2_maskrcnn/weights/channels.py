"""Adapt the weights of a model for color images to images of another number of channels."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.comparison import Shape

_NAME = re.compile(r"(.*\.)?stem\.conv1\.weight")


def adapt_first_convolution(
    path: str, state: Mapping[str, Any], model_shapes: Mapping[str, Shape]
) -> tuple[dict[str, torch.Tensor], str]:
    """Adapt the filters of a model for color images to another number of channels.

    Each channel's filter becomes the mean of the filters of the three colors, times 3 / channels: an image whose
    channels are all equal then has the same features as a gray image had before.

    Args:
        path: the file, for messages.
        state: its tensors under the model's names.
        model_shapes: name to shape of every tensor in the model's state dict.

    Returns:
        The tensors to use in place of those in ``state``, and what was done in words; empty if the channels agree.

    Raises:
        UserError: the channels differ, and the file's are not three.
    """
    name = next((each for each in model_shapes if each in state and _NAME.fullmatch(each)), None)
    if name is None or len(shape := tuple(state[name].shape)) != 4:
        return {}, ""
    expected = model_shapes[name]
    if shape == expected or (shape[0], *shape[2:]) != (expected[0], *expected[2:]):
        return {}, ""
    if shape[1] != 3:
        raise UserError(
            f"{path} contains the weights of a model for images of {shape[1]} channels, but MODEL.PIXEL_MEAN has "
            f"{expected[1]} values; only weights for color images can be adapted: choose other MODEL.WEIGHTS."
        )
    mean = torch.as_tensor(state[name]).float().mean(dim=1, keepdim=True)
    adapted = (mean * (3 / expected[1])).expand(-1, expected[1], -1, -1).clone()
    return {name: adapted}, f"{name}: 3 colors adapted to {expected[1]} channels (their mean times 3/{expected[1]})"
