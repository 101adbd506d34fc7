"""ROIAlign with our CUDA kernels (``*.cu`` beside this file): one deterministic launch for all levels."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from d2_maskrcnn.ops.roi_align.cpu import as_table
from d2_maskrcnn.ops.roi_align.cuda.nvrtc import (
    KernelError,
    cache_entry,
    cached_cubin,
    call,
    import_bindings,
    nvrtc_version,
    supported_architectures,
)
from d2_maskrcnn.ops.roi_align.levels import PoolingSpec, coordinate_dtype, level_thresholds

FOLDER = Path(__file__).resolve().parent
HEADERS = (FOLDER / "roi_align.cuh", FOLDER / "scalars.cuh")
SCALARS = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "float16"}
COORDS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}

# The same values as in the sources.
MAX_LEVELS, MAX_IMAGES = 16, 64
WARP, PACK_BYTES, TILE = 32, 16, 8
FORWARD_WARPS, BINS_PER_BLOCK = 8, 32


@cache
def params_type(coords: torch.dtype) -> type[ctypes.Structure]:
    """Return ``struct Params`` of ``roi_align.cuh`` for coordinates of the given type."""
    coord = COORDS[coords]
    strides = [(f"{name}_stride", ctypes.c_longlong) for name in ("image", "channel", "row", "column")]
    counts = [(name, ctypes.c_int) for name in ("height", "width", "first_tile", "tiles_across")]

    class Level(ctypes.Structure):
        _fields_ = [("data", ctypes.c_void_p), *strides, ("scale", coord), ("threshold", coord), *counts]

    class Params(ctypes.Structure):
        _fields_ = [
            ("levels", Level * MAX_LEVELS),
            ("image_end", ctypes.c_int * MAX_IMAGES),
            ("boxes", ctypes.c_void_p),
            ("bins", ctypes.c_void_p),
            ("offset", coord),
            ("least_length", coord),
            *[(name, ctypes.c_int) for name in ("num_levels", "num_images", "num_boxes", "channels")],
            *[(name, ctypes.c_int) for name in ("bins_y", "bins_x", "sampling_ratio", "num_tiles")],
        ]

    return Params


def compile_options(scalars: torch.dtype, coords: torch.dtype) -> list[str]:
    """Return NVRTC's options for features and coordinates of these types."""
    coord = "double" if coords == torch.float64 else "float"
    size = ctypes.sizeof(params_type(coords))
    return ["--std=c++17", f"-DSCALAR={SCALARS[scalars]}", f"-DCOORD={coord}", f"-DPARAMS_SIZE={size}"]


class Kernels(NamedTuple):
    """Kernels loaded on one device for one pair of types, as function handles of the CUDA driver."""

    forward_packed: Any
    forward_strided: Any
    backward_packed: Any
    backward_strided: Any


def check_device(device: torch.device) -> None:
    """Check that ``device`` can run CUDA kernels at all.

    Raises:
        KernelError: it cannot.
    """
    if device.type != "cuda":
        raise KernelError(f"the tensors are on the device {device}, not on a GPU")
    if torch.version.cuda is None:
        raise KernelError("this PyTorch is not built for CUDA")


@cache
def load_kernels(device_index: int, scalars: torch.dtype, coords: torch.dtype) -> Kernels:
    """Compile the kernels (or read them from the cache) and load them on a device.

    Raises:
        KernelError: they cannot be compiled or loaded.
    """
    driver = import_bindings("driver")
    functions: dict[str, Any] = {}
    with torch.cuda.device(device_index):
        call(driver.cuCtxSetCurrent, primary_context(device_index))
        for part, inputs in cubin_inputs(device_index, scalars, coords).items():
            cubin = cached_cubin(*inputs)
            module = call(driver.cuModuleLoadData, cubin)  # kept for the life of the process
            for name in (f"{part}_packed", f"{part}_strided"):
                functions[name] = call(driver.cuModuleGetFunction, module, name.encode())
    return Kernels(**functions)


def cubin_inputs(device_index: int, scalars: torch.dtype, coords: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of :func:`cached_cubin` for the forward and the backward kernels."""
    architecture = find_architecture(*torch.cuda.get_device_capability(device_index))
    options = compile_options(scalars, coords)
    return {part: (FOLDER / f"{part}.cu", HEADERS, architecture, options) for part in ("forward", "backward")}


def cubin_entries(device_index: int, scalars: torch.dtype, coords: torch.dtype) -> list[Path]:
    """Return the cache entries of the kernels, whose names identify their code."""
    return [cache_entry(*inputs) for inputs in cubin_inputs(device_index, scalars, coords).values()]


def find_architecture(major: int, minor: int) -> int:
    """Return the newest architecture that NVRTC compiles for and a GPU of compute capability ``major.minor`` runs.

    Raises:
        KernelError: there is none.
    """
    fitting = [arch for arch in supported_architectures() if arch // 10 == major and arch % 10 <= minor]
    if not fitting:
        version = ".".join(map(str, nvrtc_version()))
        raise KernelError(f"NVRTC {version} does not compile for GPUs of compute capability {major}.{minor}")
    return max(fitting)


def pool(
    features: Sequence[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], spec: PoolingSpec
) -> torch.Tensor:
    """Pool boxes from a feature pyramid; see :func:`d2_maskrcnn.ops.roi_align.cpu.pool`."""
    coords = coordinate_dtype(boxes, *features)
    channels, (height, width) = features[0].shape[1], spec.output_size
    pooled = features[0].new_empty((len(boxes), height, width, channels))
    kernels = load_kernels(pooled.device.index, pooled.dtype, coords)
    boxes = boxes.to(coords).contiguous()
    kernel = kernels.forward_packed if all(map(is_packed, features)) else kernels.forward_strided
    for params in pack_params(features, boxes, boxes_per_image, pooled, spec):
        blocks = (params.num_boxes, -(-height * width // BINS_PER_BLOCK))
        launch(kernel, blocks, FORWARD_WARPS * WARP, params, pooled.device)
    return pooled.permute(0, 3, 1, 2)


def gradients(
    grad: torch.Tensor,
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
) -> list[torch.Tensor]:
    """Compute the features' gradients; see :func:`d2_maskrcnn.ops.roi_align.cpu.gradients`."""
    coords = coordinate_dtype(boxes, grad)
    bins = as_table(grad)
    results = [grad.new_empty((n, height, width, c)).permute(0, 3, 1, 2) for n, c, height, width in shapes]
    kernels = load_kernels(grad.device.index, grad.dtype, coords)
    boxes = boxes.to(coords).contiguous()
    packed = all(map(is_packed, results)) and bins.data_ptr() % PACK_BYTES == 0
    kernel = kernels.backward_packed if packed else kernels.backward_strided
    lanes = WARP * (PACK_BYTES // grad.element_size() if packed else 1)
    for params in pack_params(results, boxes, boxes_per_image, bins, spec):
        launch(kernel, (params.num_tiles, -(-params.channels // lanes)), TILE * WARP, params, grad.device)
    return results


def is_packed(feature: torch.Tensor) -> bool:
    """Return whether the channels of a level (N, C, H, W) can be read 16 bytes at a time."""
    items = PACK_BYTES // feature.element_size()
    steps = (feature.shape[1], feature.stride(0), feature.stride(2), feature.stride(3))
    channels_last = feature.stride(1) == 1 or feature.shape[1] == 1
    return channels_last and all(step % items == 0 for step in steps) and feature.data_ptr() % PACK_BYTES == 0


def pack_params(
    levels: Sequence[torch.Tensor],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    bins: torch.Tensor,
    spec: PoolingSpec,
) -> list[ctypes.Structure]:
    """Return the parameters of each launch, which covers at most ``MAX_IMAGES`` images.

    Args:
        levels: (N, C, Hi, Wi) features, or their gradients.
        boxes: (M, 4) contiguous, of the kernels' coordinate type.
        bins: (M, Ph, Pw, C) memory of the pooled bins or their gradients.

    Raises:
        ValueError: more than ``MAX_LEVELS`` levels.
    """
    if len(levels) > MAX_LEVELS:
        raise ValueError(f"{len(levels)} feature levels: the CUDA kernels take at most {MAX_LEVELS}")
    launches, first_box = [], 0
    for first_image in range(0, len(boxes_per_image), MAX_IMAGES):
        counts = boxes_per_image[first_image : first_image + MAX_IMAGES]
        params = params_type(boxes.dtype)()
        params.num_images = len(counts)
        for image, count in enumerate(counts):
            params.num_boxes += count
            params.image_end[image] = params.num_boxes
        params.boxes = boxes.data_ptr() + first_box * 4 * boxes.element_size()
        params.channels = levels[0].shape[1]
        params.bins_y, params.bins_x = spec.output_size
        bins_per_box = params.bins_y * params.bins_x * params.channels
        params.bins = bins.data_ptr() + first_box * bins_per_box * bins.element_size()
        params.sampling_ratio = spec.sampling_ratio
        params.offset, params.least_length = (0.5, -1.0) if spec.aligned else (0.0, 1.0)
        pack_levels(params, levels, first_image, spec)
        launches.append(params)
        first_box += params.num_boxes
    return launches


def pack_levels(params: Any, levels: Sequence[torch.Tensor], first_image: int, spec: PoolingSpec) -> None:
    """Write the levels into ``params``, starting with image ``first_image``."""
    params.num_levels = len(levels)
    thresholds = [0.0, *level_thresholds(len(levels), spec.canonical_box_size, spec.canonical_level)]
    for level, tensor, scale, threshold in zip(params.levels, levels, spec.scales, thresholds, strict=False):
        level.image_stride, level.channel_stride, level.row_stride, level.column_stride = tensor.stride()
        level.data = tensor.data_ptr() + first_image * level.image_stride * tensor.element_size()
        level.height, level.width = tensor.shape[2:]
        level.scale, level.threshold = scale, threshold
        level.first_tile, level.tiles_across = params.num_tiles, -(-level.width // TILE)
        params.num_tiles += params.num_images * level.tiles_across * -(-level.height // TILE)


def launch(kernel: Any, blocks: tuple[int, int], threads: int, params: ctypes.Structure, device: torch.device) -> None:
    """Start a kernel with one struct as its argument, on PyTorch's current stream of ``device``.

    Raises:
        KernelError: the driver reports an error.
    """
    if min(blocks) == 0:
        return
    driver = import_bindings("driver")
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))  # the driver copies the struct before it returns
    with torch.cuda.device(device):
        # PyTorch makes a device's context current lazily, so a thread of autograd may have none yet.
        call(driver.cuCtxSetCurrent, primary_context(torch.cuda.current_device()))
        stream = torch.cuda.current_stream().cuda_stream
        call(driver.cuLaunchKernel, kernel, *blocks, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0)


@cache
def primary_context(index: int) -> Any:
    """Return the driver's handle of the context that PyTorch uses on device ``index``.

    Raises:
        KernelError: the driver reports an error.
    """
    driver = import_bindings("driver")
    return call(driver.cuDevicePrimaryCtxRetain, call(driver.cuDeviceGet, index))
