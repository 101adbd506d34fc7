"""Activations of chosen layers: heat maps of their channels, statistics and warnings."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.inspection.statistics import TensorStatistics, describe
from d2_maskrcnn.visualization.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE, GAP, COLUMNS = 96, 2, 8  # pixels of a tile and between tiles; tiles in a row
MAX_TILES = 16
SATURATED_SHARE = 0.5  # share of the nonzero values at one extreme, above which a layer is saturated
ALMOST_DEAD = 0.99  # share of zeros
FLOAT16_MAX = 65504.0
_NOT_FINITE = (255, 0, 255)  # RGB
_BACKGROUND = 128


@dataclass(kw_only=True)
class LayerActivation(TensorStatistics):
    """Statistics of one layer's output.

    Attributes:
        shape: of the output, without the batch dimension where that is 1.
        channels, dead_channels: number of channels, and of those that are zero everywhere.
        flags: warnings.
    """

    name: str
    channels: int = 1
    dead_channels: int = 0
    flags: list[str] = field(default_factory=list)


def layer_tensors(observation: Observation) -> dict[str, torch.Tensor]:
    """Return the recorded outputs by layer: the model's intermediate tensors, then the layers that were chosen.

    They are (1, C, H, W), or (M, C, P, P) and (M, D) for M regions. A module that ran on several levels has one entry
    for each level.
    """
    recorded = observation.intermediates
    tensors: dict[str, torch.Tensor] = {"input": recorded.images} if recorded.images is not None else {}
    tensors.update(recorded.bottom_up)
    tensors.update(recorded.features)
    for name, outputs in observation.layers.items():
        for index, output in enumerate(outputs):
            tensors[name + _suffix(observation, index, len(outputs))] = output
    of_regions = {
        "box features": recorded.box_pooled,
        "class logits": recorded.class_logits,
        "box deltas": recorded.box_deltas,
        "mask features": recorded.mask_pooled,
        "mask logits": recorded.mask_logits,
    }
    tensors.update({name: tensor for name, tensor in of_regions.items() if tensor is not None})
    return tensors


def _suffix(observation: Observation, index: int, runs: int) -> str:
    """Name one of several outputs of a module by its feature level, or else by its number."""
    if runs == 1:
        return ""
    return f" on {observation.level_names[index]}" if runs == len(observation.level_names) else f" run {index + 1}"


def unused_layers(observation: Observation) -> list[str]:
    """Return the chosen layers that did not run, for example because there were no detections."""
    return [name for name, outputs in observation.layers.items() if not outputs]


def inspect_activations(observation: Observation) -> list[LayerActivation]:
    """Compute the statistics of every layer of :func:`layer_tensors`."""
    tensors = layer_tensors(observation)
    return observation.once("activations", lambda: [describe_layer(name, tensor) for name, tensor in tensors.items()])


def describe_layer(name: str, tensor: torch.Tensor) -> LayerActivation:
    """Compute the statistics of one output, (N, C, ...) or (N, D)."""
    values = tensor.detach().float().cpu()
    statistics, finite = describe(values)
    layer = LayerActivation(name=name, **vars(statistics))
    if values.shape[:1] == (1,):
        layer.shape = layer.shape[1:]
    if values.dim() > 1:
        layer.channels = values.shape[1]
    if values.dim() > 1 and values.numel():
        nonzero = values.count_nonzero(dim=[d for d in range(values.dim()) if d != 1])
        layer.dead_channels = int((nonzero == 0).sum())
    layer.flags = _flags(layer, finite, values.numel())
    return layer


def _flags(layer: LayerActivation, finite: torch.Tensor, count: int) -> list[str]:
    """Return warnings about a layer of ``count`` values."""
    if count == 0:
        return ["empty: no region reached this layer"]
    flags = [f"{n} of {count} values are {kind}" for n, kind in ((layer.nan, "NaN"), (layer.inf, "infinite")) if n]
    if layer.zeros == 1:
        return [*flags, "dead: all zero"]
    if layer.zeros > ALMOST_DEAD:
        flags.append(f"almost dead: {layer.zeros:.1%} zeros")
    if layer.min is None or layer.max is None:
        return flags
    extremes = [value for value in (layer.min, layer.max) if value != 0]
    nonzero = int(finite.count_nonzero())
    if nonzero > 1 and extremes:
        share, value = max((int((finite == extreme).sum()) / nonzero, extreme) for extreme in extremes)
        if share > SATURATED_SHARE:
            flags.append(f"saturated: {share:.0%} of the nonzero values are {value:.4g}")
    largest = max(abs(layer.min), abs(layer.max))
    if largest > FLOAT16_MAX:
        flags.append(f"values up to {largest:.3g}: too large for float16")
    return flags


def channel_grid(tensor: torch.Tensor, count: int = MAX_TILES) -> np.ndarray:
    """Draw channels as a grid of heat maps.

    Each tile ranges from its channel's lowest finite value (black) to its highest (yellow); NaN and Inf are magenta.

    Args:
        tensor: (N, C, H, W), of which the first of N is drawn, or (M, D), drawn as one map of M rows.
        count: number of channels, spread evenly over all.

    Returns:
        (rows, columns, 3) uint8 RGB.
    """
    values = tensor.detach().float().cpu().numpy()
    if values.size == 0:
        return np.full((TILE, TILE, 3), _BACKGROUND, np.uint8)
    if values.ndim < 4:
        return _tile(values.reshape(len(values), -1), (min(max(len(values) * 2, 48), 240), COLUMNS * (TILE + GAP)))
    channels = values[0][np.unique(np.linspace(0, values.shape[1] - 1, min(count, values.shape[1])).astype(int))]
    ratio = channels.shape[1] / channels.shape[2]
    size = (round(TILE * min(max(ratio, 0.4), 1.6)), TILE)
    tiles = [_tile(channel, size) for channel in channels]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    grid = np.full((rows * (size[0] + GAP), columns * (size[1] + GAP), 3), _BACKGROUND, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (size[0] + GAP), index % columns * (size[1] + GAP)
        grid[y : y + size[0], x : x + size[1]] = tile
    return grid


def channel_grids(observation: Observation) -> dict[str, np.ndarray]:
    """Draw a :func:`channel_grid` of every layer of :func:`layer_tensors`."""
    tensors = layer_tensors(observation)
    return observation.once("grids", lambda: {name: channel_grid(tensor) for name, tensor in tensors.items()})


def _tile(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw (h, w) values as a heat map of (*size, 3) uint8 RGB."""
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    scaled = np.where(finite, values - low, 0) / (high - low if high > low else 1.0)
    heat = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].copy()
    heat[~finite] = _NOT_FINITE
    interpolation = cv2.INTER_NEAREST if heat.shape[0] < size[0] else cv2.INTER_AREA
    return cv2.resize(heat, (size[1], size[0]), interpolation=interpolation)


def draw_activations(observation: Observation, name: str) -> "Figure":
    """Draw the channel grid of one layer of :func:`layer_tensors`.

    Raises:
        KeyError: there is no such layer.
    """
    tensor = layer_tensors(observation)[name]
    layer, grid = describe_layer(name, tensor), channel_grid(tensor)
    figure, (axes,) = new_figure(1, 1, (8.0, min(8.0 * grid.shape[0] / grid.shape[1], 12.0) + 0.6))
    axes.imshow(grid, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("\n".join([f"{name} {layer.shape}: {numbers(layer)}", *layer.flags]), fontsize=8)
    return figure


def numbers(layer: TensorStatistics) -> str:
    """Format minimum, maximum, mean and share of zeros in one line."""
    if layer.min is None or layer.max is None or layer.mean is None:
        return "no finite value"
    return f"{layer.min:.3g} to {layer.max:.3g}, mean {layer.mean:.3g}, {layer.zeros:.0%} zeros"
