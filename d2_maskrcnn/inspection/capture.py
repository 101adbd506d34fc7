"""Keeps the outputs of chosen modules during a forward pass."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.errors import UserError, did_you_mean


def default_layers(model: nn.Module) -> list[str]:
    """Layers worth a look that the model's stages don't record themselves: those inside the three heads."""
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
    """Inside the ``with`` block, every output of the named modules is kept in the dict that is yielded.

    A module that runs on several levels has one output for each. Outputs are detached but not copied: one that a later
    step changes in place (a ReLU) is seen changed. A module whose work is done by another, faster path has none.

    Args:
        names: as in ``model.named_modules()``; None for :func:`default_layers`.

    Raises:
        UserError: there is no such module; the nearest one is named.
    """
    modules = dict(model.named_modules())
    wanted = list(default_layers(model) if names is None else names)
    for name in wanted:
        if not name or name not in modules:
            raise UserError(f"The model has no layer {name!r}.{_hint(name, modules)}")
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    with ExitStack() as stack:
        for name in wanted:
            stack.callback(modules[name].register_forward_hook(_keeper(outputs[name])).remove)
        yield outputs


def _hint(name: str, modules: Iterable[str]) -> str:
    """Suggest the most similar module, among those with the same last part if there are any."""
    known = [each for each in modules if each]
    same_end = [each for each in known if each.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    return did_you_mean(name, same_end or known, cutoff=0.0)


def _keeper(kept: list[torch.Tensor]) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        values = (
            output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
        )
        kept.extend(value.detach() for value in values if isinstance(value, torch.Tensor))

    return keep
