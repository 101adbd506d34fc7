"""Check the CUDA kernels against the portable path on a tiny case before their first use on a device."""

import hashlib
from collections.abc import Sequence

import torch

from d2_maskrcnn.ops.roi_align import cpu
from d2_maskrcnn.ops.roi_align.cuda import kernels, nvrtc
from d2_maskrcnn.ops.roi_align.levels import PoolingSpec

PASSED = b"passed"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
CHANNELS = (16, 3)  # packed and strided kernels
SPEC = PoolingSpec((2, 3), (1 / 4, 1 / 8), 0, True, 16.0, 0)
BOXES = [[2, 3, 20, 22], [-6, -4, 70, 50], [30, 8, 33, 30], [25, 20, 10, 5], [1, 1, 7, 31], [40, 30, 90, 80]]
BOXES_PER_IMAGE = (2, 4)
SHAPES = ((2, 9, 13), (2, 5, 7))  # images, height and width of each level


class WrongResultError(nvrtc.KernelError):
    """The kernels run but differ from the portable path."""


def check_kernels(device: torch.device, scalars: torch.dtype, coords: torch.dtype) -> None:
    """Run the tiny case, unless it has passed before with the same kernels on the same GPU model and driver.

    Raises:
        WrongResultError: a result differs.
    """
    description = (torch.cuda.get_device_name(device), nvrtc.call(nvrtc.import_bindings("driver").cuDriverGetVersion))
    entries = [entry.name for entry in kernels.cubin_entries(device.index, scalars, coords)]
    key = hashlib.sha256(repr((entries, description)).encode()).hexdigest()
    entry = nvrtc.cache_folder() / f"check-{key[:32]}"
    if nvrtc.read_entry(entry) != PASSED:
        compare_with_portable(device, scalars, coords)
        nvrtc.write_entry(entry, PASSED)


def compare_with_portable(device: torch.device, scalars: torch.dtype, coords: torch.dtype) -> None:
    """Pool a few boxes and compute gradients with every kernel on ``device`` and with the portable path on the CPU.

    Raises:
        WrongResultError: a result differs by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor(BOXES, dtype=coords)
    for channels in CHANNELS:
        shapes = [(images, channels, height, width) for images, height, width in SHAPES]
        features = [torch.randn(shape, generator=generator).to(scalars) for shape in shapes]
        features = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
        bins = torch.randn((len(boxes), channels, *SPEC.output_size), generator=generator).to(scalars)
        expected = [
            cpu.pool(features, boxes, BOXES_PER_IMAGE, SPEC),
            *cpu.gradients(bins, shapes, boxes, BOXES_PER_IMAGE, SPEC),
        ]
        on_device = [feature.to(device) for feature in features]
        results = [
            kernels.pool(on_device, boxes.to(device), BOXES_PER_IMAGE, SPEC),
            *kernels.gradients(bins.to(device), shapes, boxes.to(device), BOXES_PER_IMAGE, SPEC),
        ]
        _compare(results, expected, device)


def _compare(results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], device: torch.device) -> None:
    for result, reference in zip(results, expected, strict=True):
        tolerance = TOLERANCE[reference.dtype]
        result, reference = result.cpu().double(), reference.double()
        if not torch.allclose(result, reference, rtol=tolerance, atol=tolerance):
            difference = (result - reference).abs().max().item()
            raise WrongResultError(
                f"on {device} the results of the CUDA kernels for {results[0].dtype} differ from the portable path by "
                f"up to {difference:.3g}; please report this"
            )
