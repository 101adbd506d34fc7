"""Outputs of chosen modules during a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from d2_maskrcnn.errors import UserError, did_you_mean
from d2_maskrcnn.modeling.intermediates import record_outputs


def default_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers inside the RPN head, the box head and the mask head.

    The other layers worth showing are part of :class:`d2_maskrcnn.modeling.Intermediates`.
    """
    names = []
    for name, module in model.named_modules():
        inside_head = name.startswith(("proposal_generator.rpn_head.", "roi_heads.mask_head."))
        convolution = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not name.endswith("predictor")
        inside_box_head = name.startswith("roi_heads.box_head.") and isinstance(module, (nn.Linear, nn.Conv2d))
        if (inside_head and convolution) or inside_box_head or name == "roi_heads.box_head":
            names.append(name)
    return names


@contextmanager
def captured_layers(model: nn.Module, names: Sequence[str] | None = None) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record the outputs of the named modules inside the ``with`` block; see :func:`record_outputs`.

    Args:
        names: as in ``model.named_modules()``; None for :func:`default_layers`.

    Raises:
        UserError: the model has no such module; the message suggests the most similar name.
    """
    modules = dict(model.named_modules())
    chosen = list(default_layers(model) if names is None else names)
    for name in chosen:
        if not name or name not in modules:
            # Prefer names that end alike: `res4.2.conv1` is closer to another conv1 than to `res4.2.conv2`.
            known = [each for each in modules if each]
            same_end = [each for each in known if each.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
            raise UserError(f"the model has no layer {name!r}.{did_you_mean(name, same_end or known, cutoff=0.0)}")
    with record_outputs({name: modules[name] for name in chosen}) as outputs:
        yield outputs
