"""Stage 4: activations of chosen layers as grids of images, with numbers and, where something is wrong, words."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.inspection.statistics import spread
from d2_maskrcnn.visualization.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE, GAP, COLUMNS = 96, 2, 8
MAX_TILES = 16
# More than this share of a layer's values, zeros left out, at one of its extremes: the layer is saturated.
SATURATED_SHARE = 0.5
ALMOST_ALL_ZERO = 0.99
FLOAT16_MAX = 65504.0
_NOT_A_NUMBER = (255, 0, 255)  # how NaN and Inf are shown, RGB


@dataclass
class LayerActivation:
    """Numbers of one layer's output; min, max, mean and std are over the finite values (None if there are none).

    shape: of the tensor, without the image's dimension where it is 1. zeros: share of exact zeros. dead_channels: of
    ``channels`` those that are zero everywhere. flags: what is wrong, in words.
    """

    name: str
    shape: list[int]
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    zeros: float
    nan: int
    inf: int
    channels: int
    dead_channels: int
    flags: list[str] = field(default_factory=list)


def layer_tensors(observation: Observation) -> dict[str, torch.Tensor]:
    """Name -> output, (1, C, H, W), (M, C, P, P) for regions or (M, D): the intermediate tensors, then the layers that
    were asked for. A module that ran on several levels has one entry for each.
    """
    intermediates = observation.intermediates
    found: dict[str, torch.Tensor] = {"input": intermediates.images} if intermediates.images is not None else {}
    found.update(intermediates.bottom_up)
    found.update(intermediates.features)
    for name, outputs in observation.layers.items():
        for index, output in enumerate(outputs):
            per_level = len(outputs) == len(observation.level_names) > 1
            suffix = (
                f" on {observation.level_names[index]}"
                if per_level
                else f" run {index + 1}"
                if len(outputs) > 1
                else ""
            )
            found[name + suffix] = output
    recorded = {
        "box features": intermediates.box_pooled,
        "class logits": intermediates.class_logits,
        "box deltas": intermediates.box_deltas,
        "mask features": intermediates.mask_pooled,
        "mask logits": intermediates.mask_logits,
    }
    found.update({name: tensor for name, tensor in recorded.items() if tensor is not None})
    return found


def unused_layers(observation: Observation) -> list[str]:
    """Layers that were asked for and did not run: no detections, or another path did their work."""
    return [name for name, outputs in observation.layers.items() if not outputs]


def inspect_activations(observation: Observation) -> list[LayerActivation]:
    """The numbers of every layer of :func:`layer_tensors`."""
    tensors = layer_tensors(observation)
    return observation.once("activations", lambda: [describe(name, tensor) for name, tensor in tensors.items()])


def describe(name: str, tensor: torch.Tensor) -> LayerActivation:
    """The numbers of one output: (N, C, ...) or (N, D)."""
    values = tensor.detach().float().cpu()
    low, high, nan, infinite = _extremes(values)
    finite = values[values.isfinite()] if nan + infinite else values
    by_channel = values.count_nonzero(dim=[d for d in range(values.dim()) if d != 1]) if values.dim() > 1 else values
    nonzero = int(by_channel.sum()) if values.dim() > 1 else int(values.count_nonzero())
    found = LayerActivation(
        name=name,
        shape=list(values.shape[1:] if values.shape[:1] == (1,) else values.shape),
        min=low,
        max=high,
        mean=float(finite.mean(dtype=torch.float64)) if low is not None else None,
        std=spread(finite) if low is not None else None,
        zeros=1 - nonzero / values.numel() if values.numel() else 0.0,
        nan=nan,
        inf=infinite,
        channels=values.shape[1] if values.dim() > 1 else 1,
        dead_channels=int((by_channel == 0).sum()) if values.dim() > 1 and values.numel() else 0,
    )
    found.flags = _flags(found, finite, values.numel(), nonzero - nan - infinite)
    return found


def _extremes(values: torch.Tensor) -> tuple[float | None, float | None, int, int]:
    """Lowest and highest finite value (None if there are none), and how many are NaN and infinite."""
    if values.numel() == 0:
        return None, None, 0, 0
    low, high = values.aminmax()  # NaN if any value is
    if low.isfinite() and high.isfinite():
        return float(low), float(high), 0, 0
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    finite = values[values.isfinite()]
    if finite.numel() == 0:
        return None, None, nan, infinite
    return float(finite.min()), float(finite.max()), nan, infinite


def _flags(layer: LayerActivation, finite: torch.Tensor, number: int, nonzero: int) -> list[str]:
    """What is wrong with a layer of ``number`` values, ``nonzero`` of its finite ones not being zero."""
    if number == 0:
        return ["empty: nothing came this far (no detections?)"]
    flags = []
    if layer.nan:
        flags.append(f"{layer.nan} of {number} values are NaN")
    if layer.inf:
        flags.append(f"{layer.inf} of {number} values are infinite")
    if layer.zeros == 1:
        return [*flags, "all zero: the layer is dead"]
    if layer.zeros > ALMOST_ALL_ZERO:
        flags.append(f"{layer.zeros:.1%} zeros: the layer is almost dead")
    if layer.min is None or layer.max is None:
        return flags
    extremes = [value for value in (layer.min, layer.max) if value != 0]
    if nonzero > 1 and extremes:
        share, value = max((int((finite == extreme).sum()) / nonzero, extreme) for extreme in extremes)
        if share > SATURATED_SHARE:
            flags.append(f"saturated: {share:.0%} of the values that are not zero are {value:.4g}")
    largest = max(abs(layer.min), abs(layer.max))
    if largest > FLOAT16_MAX:
        flags.append(f"values up to {largest:.3g}: too large for float16")
    return flags


def channel_grid(tensor: torch.Tensor, count: int = MAX_TILES) -> np.ndarray:
    """``count`` channels, spread evenly over all, as a grid of heat maps: (rows, columns, 3) uint8 RGB.

    Args:
        tensor: (N, C, H, W), of which the first of N is shown, or (M, D), shown as one image of M rows.

    Each tile spans from its channel's lowest finite value (black) to its highest (white). NaN and Inf are magenta.
    """
    values = tensor.detach().float().cpu().numpy()
    if values.size == 0:
        return np.full((TILE, TILE, 3), 128, np.uint8)
    if values.ndim < 4:
        return _tile(values.reshape(len(values), -1), (min(max(len(values) * 2, 48), 240), COLUMNS * (TILE + GAP)))
    channels = values[0][np.unique(np.linspace(0, values.shape[1] - 1, min(count, values.shape[1])).astype(int))]
    ratio = channels.shape[1] / channels.shape[2]
    size = (round(TILE * min(max(ratio, 0.4), 1.6)), TILE)
    tiles = [_tile(channel, size) for channel in channels]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    grid = np.full((rows * (size[0] + GAP), columns * (size[1] + GAP), 3), 128, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (size[0] + GAP), index % columns * (size[1] + GAP)
        grid[y : y + size[0], x : x + size[1]] = tile
    return grid


def channel_grids(observation: Observation) -> dict[str, np.ndarray]:
    """Name -> :func:`channel_grid` of every layer of :func:`layer_tensors`."""
    tensors = layer_tensors(observation)
    return observation.once("grids", lambda: {name: channel_grid(tensor) for name, tensor in tensors.items()})


def _tile(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> (*size, 3) uint8 RGB."""
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    scaled = np.where(finite, values - low, 0) / (high - low if high > low else 1.0)
    heat = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].copy()
    heat[~finite] = _NOT_A_NUMBER
    return cv2.resize(
        heat, (size[1], size[0]), interpolation=cv2.INTER_NEAREST if heat.shape[0] < size[0] else cv2.INTER_AREA
    )


def draw_activations(observation: Observation, name: str) -> "Figure":
    """The grid of one layer of :func:`layer_tensors`.

    Raises:
        KeyError: there is no such layer.
    """
    tensor = layer_tensors(observation)[name]
    layer, grid = describe(name, tensor), channel_grid(tensor)
    figure, axes = new_figure(1, 1, (8.0, min(8.0 * grid.shape[0] / grid.shape[1], 12.0) + 0.6))
    axes[0].imshow(grid, interpolation="nearest")
    axes[0].set_axis_off()
    axes[0].set_title("\n".join([f"{name} {layer.shape}: {numbers(layer)}", *layer.flags]), fontsize=8)
    return figure


def numbers(layer: LayerActivation) -> str:
    """Min, max, mean and share of zeros in one line."""
    if layer.min is None or layer.max is None or layer.mean is None:
        return "no finite value"
    return f"{layer.min:.3g} to {layer.max:.3g}, mean {layer.mean:.3g}, {layer.zeros:.0%} zeros"
