"""Time our ROIAlign against torchvision's ``MultiScaleRoIAlign`` and, if installed, Detectron2's ``ROIPooler``.

    python benchmarks/roi_align.py --output benchmarks/results/roi_align.md

All run in this process on the same inputs, alternating, after a warm-up round. A time is the median over the rounds, a
ratio the median of the rounds' ratios, so that short loads from other programs affect neither much. torchvision has no
bfloat16 kernels, and on CPUs its float16 ones are 10 times slower than float32, so features are converted to float32
and the result back, as torchvision does under autocast. The same applies to Detectron2's pooler, which uses them.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torchvision.ops import MultiScaleRoIAlign

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import d2_maskrcnn  # noqa: E402
from d2_maskrcnn.ops import ROIPooler  # noqa: E402

STRIDES = (4, 8, 16, 32)
IMAGE = (800, 1216)  # height and width, padded to a multiple of 32
CHANNELS = 256
GPU_CALLS = 10


class Case(NamedTuple):
    """One row of the table."""

    task: str
    num_boxes: int
    output_size: int
    sampling_ratio: int
    dtype: torch.dtype
    memory_format: torch.memory_format
    training: bool

    def describe(self) -> list[str]:
        """Return the row's first cells."""
        return [
            f"{self.task}: {self.num_boxes} boxes, {self.output_size}x{self.output_size}",
            "forward + backward" if self.training else "forward",
            str(self.sampling_ratio) if self.sampling_ratio else "adaptive",
            str(self.dtype).removeprefix("torch."),
            "channels-last" if self.memory_format == torch.channels_last else "NCHW",
        ]


def all_cases(dtypes: Sequence[torch.dtype], formats: Sequence[torch.memory_format]) -> Iterator[Case]:
    """Yield box and mask pooling with both sampling modes, for inference and training."""
    for memory_format in formats:
        for dtype in dtypes:
            for training in (False, True):
                for task, num_boxes, output_size in (("box pooling", 1000, 7), ("mask pooling", 100, 14)):
                    for sampling_ratio in (2, 0):
                        yield Case(task, num_boxes, output_size, sampling_ratio, dtype, memory_format, training)


def make_pyramid(case: Case, device: torch.device) -> list[torch.Tensor]:
    """Return P2 to P5 of one image."""
    shapes = [(1, CHANNELS, IMAGE[0] // stride, IMAGE[1] // stride) for stride in STRIDES]
    features = [torch.randn(shape, device=device).to(case.dtype) for shape in shapes]
    return [feature.contiguous(memory_format=case.memory_format) for feature in features]


def make_boxes(count: int, device: torch.device) -> torch.Tensor:
    """Return (M, 4) boxes inside the image: square roots of areas log-uniform in 16 to 600 pixels, any aspect ratio."""
    height, width = IMAGE
    size = 16 * (600 / 16) ** torch.rand(count, device=device)
    shape = torch.exp((torch.rand(count, device=device) - 0.5) * 1.4)
    sides = torch.stack([(size * shape).clamp(max=width), (size / shape).clamp(max=height)], dim=1)
    corners = torch.rand((count, 2), device=device) * (torch.tensor([width, height], device=device) - sides)
    return torch.cat([corners, corners + sides], dim=1)


Pooling = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]


def poolings(case: Case, device: torch.device) -> dict[str, Pooling]:
    """Return the available implementations by name, ours first."""
    scales = [1 / stride for stride in STRIDES]
    result = {"ours": with_boxes(ROIPooler(case.output_size, scales, case.sampling_ratio, "ROIAlignV2"))}
    multi_scale = MultiScaleRoIAlign(list("0123"), case.output_size, case.sampling_ratio or -1)

    def torchvision_pooling(features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        return multi_scale(dict(zip("0123", features, strict=True)), [boxes], [IMAGE])

    result["torchvision"] = in_float32(torchvision_pooling, case, device)
    if d2_maskrcnn.engine_info().name != "embedded":
        from detectron2.modeling.poolers import ROIPooler as Detectron2Pooler

        pooler = Detectron2Pooler(case.output_size, scales, case.sampling_ratio, "ROIAlignV2")
        result["Detectron2"] = in_float32(with_boxes(pooler), case, device)
    return result


def with_boxes(pooler: torch.nn.Module) -> Pooling:
    """Adapt a pooler that takes Detectron2's Boxes."""
    from detectron2.structures import Boxes

    return lambda features, boxes: pooler(features, [Boxes(boxes)])


def in_float32(pooling: Pooling, case: Case, device: torch.device) -> Pooling:
    """Convert features of types without (fast) kernels to float32 before ``pooling``, and the result back."""
    direct = (torch.float32,) if device.type == "cpu" else (torch.float32, torch.float16)

    def converted(features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        if case.dtype in direct:
            return pooling(features, boxes.to(case.dtype))
        return pooling([feature.float() for feature in features], boxes).to(case.dtype)

    return converted


def make_call(pooling: Pooling, case: Case, device: torch.device, boxes: torch.Tensor) -> Callable[[], object]:
    """Return the timed function: pooling and, in training, the gradients of all levels."""
    features = [feature.requires_grad_(case.training) for feature in make_pyramid(case, device)]
    shape = (case.num_boxes, CHANNELS, case.output_size, case.output_size)
    grad = torch.randn(shape, device=device).to(case.dtype).contiguous(memory_format=case.memory_format)

    def call() -> object:
        pooled = pooling(features, boxes)
        return torch.autograd.grad(pooled, features, grad) if case.training else pooled

    return call


def time_once(call: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call; on a GPU the mean of several calls in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start_event.record()
    for _ in range(GPU_CALLS):
        call()
    end_event.record()
    torch.cuda.synchronize(device)
    return start_event.elapsed_time(end_event) / GPU_CALLS


def copy_time(num_bytes: int, device: torch.device) -> float:
    """Return the milliseconds of a copy that moves ``num_bytes``, reads and writes together."""
    source = torch.empty(num_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return statistics.median(time_once(lambda: target.copy_(source), device) for _ in range(20))


def bytes_moved(case: Case) -> int:
    """Return the bytes if each level and bin (in training also their gradients) is read or written once."""
    cells = sum(IMAGE[0] // stride * (IMAGE[1] // stride) for stride in STRIDES)
    elements = CHANNELS * (cells + case.num_boxes * case.output_size**2)
    return elements * case.dtype.itemsize * (2 if case.training else 1)


def run_case(case: Case, device: torch.device, rounds: int) -> list[str]:
    """Return one row of the table: times and ratios."""
    torch.manual_seed(0)
    boxes = make_boxes(case.num_boxes, device)
    calls = {name: make_call(pooling, case, device, boxes) for name, pooling in poolings(case, device).items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(time_once(call, device))
    kept = {name: measured[1:] for name, measured in times.items()}
    cells = [f"{statistics.median(measured):.2f}" for measured in kept.values()]
    for name in list(kept)[1:]:
        cells.append(f"{statistics.median(b / a for a, b in zip(kept['ours'], kept[name], strict=True)):.1f}")
    if device.type == "cuda":
        copying, moved = copy_time(bytes_moved(case), device), bytes_moved(case)
        ours = statistics.median(kept["ours"])
        cells += [f"{moved / ours / 1e6:.0f}", f"{ours / copying:.1f}"]
    return [*case.describe(), *cells]


def heading(device: torch.device) -> list[str]:
    """Return the table's heading."""
    names = list(poolings(Case("", 1, 7, 2, torch.float32, torch.channels_last, False), device))
    cells = ["task", "pass", "samples", "type", "features", *(f"{name} ms" for name in names)]
    cells += [f"{name} / ours" for name in names[1:]]
    return cells + (["GB/s", "ours / copy"] if device.type == "cuda" else [])


def describe_machine(device: torch.device) -> str:
    """Return device and versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{cpu_name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    versions = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    return f"{name}; {versions}"


def cpu_name() -> str:
    """Return the processor's name on Linux, otherwise its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds of each case")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--formats", nargs="+", default=["channels_last", "contiguous_format"])
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    return parser.parse_args()


def main() -> None:
    """Run all cases and print a Markdown table."""
    args = parse_args()
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    cells = heading(device)
    lines = [f"{describe_machine(device)}; medians of {args.rounds} rounds.", ""]
    lines += ["| " + " | ".join(cells) + " |", "|" + " --- |" * len(cells)]
    print("\n".join(lines), flush=True)
    formats = [getattr(torch, name) for name in args.formats]
    for case in all_cases([getattr(torch, name) for name in args.dtypes], formats):
        lines.append("| " + " | ".join(run_case(case, device, args.rounds)) + " |")
        print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
