"""Time the stages of our model's forward pass, and each stage's convolutions alone.

The convolutions alone are a stage's convolutions and linear layers, each run several times in a row on an input of the
same shape, type and memory format, on the same number of threads, by the algorithm that the model uses for it, with its
bias and the allocation of its output, but without norm, residual and ReLU. Their share of the stage's time shows what
everything else costs. It can exceed 100%: the model stores results in existing tensors where a convolution alone
allocates its output.
"""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm

# Stage -> the modules whose time is added (+) and subtracted (-).
STAGES = {
    "ResNet": ("+backbone.bottom_up",),
    "FPN": ("+backbone", "-backbone.bottom_up"),
    "RPN head": ("+proposal_generator.rpn_head",),
    "proposals": ("+proposal_generator", "-proposal_generator.rpn_head"),
    "ROIAlign of boxes": ("+roi_heads.box_pooler",),
    "box head": ("+roi_heads.box_head", "+roi_heads.box_predictor"),
    "ROIAlign of masks": ("+roi_heads.mask_pooler",),
    "mask head": ("+roi_heads.mask_head",),
}
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Call = tuple[str, tuple[int, ...]]  # name of a layer and the shape of its input


def stage_table(model: nn.Module, run: Callable[[], Any], rounds: int = 3) -> str:
    """Return the times of the stages in ``rounds`` forward passes as a Markdown table."""
    calls = record_calls(model, run)
    seconds = time_modules(model, run, rounds)
    alone = time_layers(model, calls, rounds)
    total = statistics.median(seconds["total"])
    lines = [
        "| stage | ms | share of the image | its convolutions alone, ms | share of the stage |",
        "|---|---|---|---|---|",
    ]
    rest = total
    for stage, parts in STAGES.items():
        medians = [(1 if part[0] == "+" else -1) * statistics.median(seconds[part[1:]]) for part in parts]
        own = sum(medians)
        rest -= own
        layers = sum(alone[call] * count for call, count in calls.items() if stage_of(call[0]) == stage)
        share = f"{layers * 1000:.0f} | {layers / own:.0%}" if layers else "|"
        lines.append(f"| {stage} | {own * 1000:.0f} | {own / total:.0%} | {share} |")
    lines.append(f"| selection of detections, masks of the whole image | {rest * 1000:.0f} | {rest / total:.0%} | | |")
    return "\n".join(lines)


def stage_of(layer: str) -> str:
    """Return the stage with the longest module name that contains a layer."""
    names = [(part[1:], stage) for stage, parts in STAGES.items() for part in parts if part[0] == "+"]
    return max((name, stage) for name, stage in names if f"{layer}.".startswith(f"{name}."))[1]


def record_calls(model: nn.Module, run: Callable[[], Any]) -> Counter[Call]:
    """Count the calls of every layer in a forward pass."""
    calls: Counter[Call] = Counter()
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):

            def record(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                calls[name, tuple(args[0].shape)] += 1

            hooks.append(module.register_forward_pre_hook(record))
    run()
    for hook in hooks:
        hook.remove()
    return calls


def time_modules(model: nn.Module, run: Callable[[], Any], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each module of ``STAGES``, and of the whole pass as ``total``, in each round."""
    sums: dict[str, float] = defaultdict(float)
    for name in {part[1:] for parts in STAGES.values() for part in parts}:
        module: Any = model.get_submodule(name)

        # Not a hook: where one may record an output, the model does not overwrite it.
        def timed(*args: Any, name: str = name, forward: Callable[..., Any] = module.forward, **kwargs: Any) -> Any:
            sums[name] -= time.perf_counter()
            output = forward(*args, **kwargs)
            sums[name] += time.perf_counter()
            return output

        module.forward = timed
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        sums.clear()
        begin = time.perf_counter()
        run()
        sums["total"] = time.perf_counter() - begin
        for name, value in sums.items():
            seconds[name].append(value)
    return seconds


def time_layers(model: nn.Module, calls: Counter[Call], rounds: int) -> dict[Call, float]:
    """Return the median seconds of each layer alone; layers of the same kind and input are timed once."""
    known: dict[Any, float] = {}
    result = {}
    for name, shape in calls:
        layer: Any = model.get_submodule(name)
        stride, padding = getattr(layer, "stride", None), getattr(layer, "padding", None)
        key = (type(layer), shape, layer.weight.shape, stride, padding)
        if key not in known:
            x = torch.rand(shape, dtype=layer.weight.dtype)
            x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
            known[key] = time_layer(layer, x, rounds)
        result[name, shape] = known[key]
    return result


def time_layer(layer: Any, x: torch.Tensor, rounds: int) -> float:
    """Return the median seconds of one layer without norm and activation."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        if isinstance(layer, ConvNorm):
            layer._convolve(x, layer.weight, layer.bias)
        else:
            layer(x)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
