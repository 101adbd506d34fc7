"""Parts of ``gpu.py`` that measure speed and peak memory; each prints Markdown. On the CPU they use tiny models."""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from models import (
    build_detectron2,
    build_torchvision,
    calibrate,
    disable_residuals,
    make_image,
    make_run,
    torchvision_batch,
)
from torch import nn

from d2_maskrcnn.engine.train_step import TrainStep
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from tools.fuzz.tiny import NARROW_MODEL

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLASSES, OBJECTS = 80, 12
COMPARISON = ("ours ms", "torchvision ms", "ratio", "images/s", "peak", "torchvision's")  # columns
TINY_TORCHVISION = {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 10, "rpn_post_nms_top_n_train": 50}
TINY_TORCHVISION |= {"box_batch_size_per_image": 32}
# A narrow model in which every anchor and proposal is sampled, so that no device's random numbers matter.
NARROW = {
    **NARROW_MODEL,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
}


def narrow_opts() -> list[Any]:
    """Return the config of a narrow model as ``KEY, VALUE, ...``."""
    return [item for pair in NARROW.items() for item in pair]


def build_models(device: str, **settings: Any) -> dict[str, nn.Module]:
    """Build our model and torchvision's with the same random seed."""
    torch.manual_seed(0)
    if device != "cpu":
        return {"ours": build_detectron2(device=device), "torchvision": build_torchvision(device, **settings)}
    ours = build_detectron2(opts=narrow_opts())
    return {"ours": ours, "torchvision": build_torchvision(depth=18, **TINY_TORCHVISION, **settings)}


def synchronize(device: str) -> None:
    """Wait until the device has finished."""
    if device != "cpu":
        torch.cuda.synchronize()


def autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return a context for a forward pass in ``dtype``."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(torch.device(device).type, dtype=dtype)


def time_alternating(runs: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds and the peak MiB above the start of each run, after two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = dict.fromkeys(runs, 0.0)
    for _ in range(rounds + 2):
        for name, run in runs.items():
            synchronize(device)
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            run()
            synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
            if device != "cpu":
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {name: (statistics.median(times[name][2:]), peaks[name]) for name in runs}


def print_table(*rows: tuple[Any, ...]) -> None:
    """Print rows of a Markdown table; call it with the heading first."""
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def print_heading(*cells: str) -> None:
    """Print the heading of a Markdown table."""
    print_table(cells, ("---",) * len(cells))


def relative_difference(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference divided by the largest value; infinite for other shapes."""
    if value.shape != expected.shape:
        return float("inf")
    if value.numel() == 0:
        return 0.0
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def print_comparison(first_cells: tuple[Any, ...], results: dict[str, tuple[float, float]], images: int) -> None:
    """Print one row: our time, torchvision's, their ratio, images per second and both peaks."""
    (ours, our_peak), (theirs, their_peak) = results["ours"], results["torchvision"]
    cells = (f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}", f"{1e3 * images / ours:.1f}")
    print_table((*first_cells, *cells, f"{our_peak:.0f}", f"{their_peak:.0f}"))


def inference(device: str) -> None:
    """Compare inference with torchvision's model of the same depth."""
    tiny = device == "cpu"
    image = make_image(*((96, 128) if tiny else (800, 1200)))
    models = build_models(device, min_size=image.shape[1], max_size=image.shape[2])
    print(
        f"ResNet101-FPN Mask R-CNN, {image.shape[1]}x{image.shape[2]}, whole-image masks on the GPU. float32 has "
        "PyTorch's default precision (convolutions in TF32), the other types run under autocast. Peak: MiB above the "
        "weights.\n"
    )
    print_heading("type", "batch", "detections", *COMPARISON)
    with torch.no_grad():
        for model in models.values():
            calibrate(model, make_run(model.eval(), image))
        for dtype, batch in itertools.product(DTYPES, (1, 4)):
            runs = {name: make_run(model, image, batch) for name, model in models.items()}
            with autocast(device, dtype):
                counts = " / ".join(str(run()) for run in runs.values())
                results = time_alternating(runs, device, 1 if tiny else 8)
            print_comparison((str(dtype).removeprefix("torch."), batch, counts), results, batch)


def make_batch(images: int, height: int, width: int) -> list[dict[str, Any]]:
    """Return images with elliptic objects, in the form of a training mapper's results."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    batch = []
    for _ in range(images):
        scale = torch.tensor([width, height])
        centers = (0.2 + 0.6 * torch.rand((OBJECTS, 2), generator=generator)) * scale
        radii = (0.05 + 0.1 * torch.rand((OBJECTS, 2), generator=generator)) * scale
        boxes = torch.cat([centers - radii, centers + radii], dim=1)
        masks = torch.stack([((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
                             for (cx, cy), (rx, ry) in zip(centers.tolist(), radii.tolist(), strict=True)])  # fmt: skip
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
        instances.gt_classes = torch.randint(CLASSES, (OBJECTS,), generator=generator)
        batch.append({"image": make_image(height, width), "instances": instances, "height": height, "width": width})
    return batch


def our_step(model: nn.Module, batch: list[dict[str, Any]], dtype: torch.dtype) -> Callable[[], None]:
    """Return one iteration of this project's training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, fused=True)  # as build_optimizer does
    amp_dtype = None if dtype == torch.float32 else dtype
    step = TrainStep(model.train(), itertools.repeat(batch), optimizer, seed=1, amp_dtype=amp_dtype, max_grad_norm=35.0)
    step.iter = 0

    def run() -> None:
        with EventStorage(0):
            step.run_step()

    return run


def torchvision_step(
    model: nn.Module, batch: list[dict[str, Any]], dtype: torch.dtype, device: str
) -> Callable[[], None]:
    """Return forward, backward and update of torchvision's model, including the transfer of the batch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    model.train()

    def run() -> None:
        images, targets = torchvision_batch(batch, device)
        optimizer.zero_grad()
        with autocast(device, dtype):
            loss = sum(model(images, targets).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return run


def training(device: str) -> None:
    """Compare a training step with torchvision's."""
    side = 128 if device == "cpu" else 800
    batch = make_batch(2, side, side)
    print(f"Two {side}x{side} images with {OBJECTS} objects each, SGD; ours with non-finite checks and clipping.\n")
    print_heading("type", *COMPARISON)
    for dtype in DTYPES:
        models = build_models(device, min_size=side, max_size=side)
        for model in models.values():
            disable_residuals(model)
        ours, theirs = models.values()
        steps = {"ours": our_step(ours, batch, dtype), "torchvision": torchvision_step(theirs, batch, dtype, device)}
        results = time_alternating(steps, device, 1 if device == "cpu" else 6)
        print_comparison((str(dtype).removeprefix("torch."),), results, 2)


def compile_backbone(device: str) -> None:
    """Compare the compiled backbone with the eager one."""
    tiny = device == "cpu"
    model = build_detectron2(device=device, opts=narrow_opts() if tiny else ()).eval()
    disable_residuals(model)
    tensor = torch.randn((1, 3, *((96, 128) if tiny else (800, 1216))), device=device)
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(model.backbone, backend="aot_eager" if tiny else "inductor")
    print_heading("type", "eager ms", "compiled ms", "ratio", "compile s", "largest difference / largest value")
    for dtype in (torch.bfloat16, torch.float32):
        with torch.no_grad(), autocast(device, dtype):
            start = time.perf_counter()
            outputs = compiled(tensor)
            seconds = time.perf_counter() - start
            expected = model.backbone(tensor)
            difference = max(relative_difference(outputs[name], expected[name]) for name in expected)
            runs = {"eager": lambda: model.backbone(tensor), "compiled": lambda: compiled(tensor)}
            results = time_alternating(runs, device, 2 if tiny else 20)
        eager, fast = results["eager"][0], results["compiled"][0]
        cells = (f"{eager:.2f}", f"{fast:.2f}", f"{fast / eager:.2f}", f"{seconds:.0f}", f"{difference:.1e}")
        print_table((str(dtype).removeprefix("torch."), *cells))


def run_part(parts: dict[str, Callable[[str], None]], description: str | None) -> None:
    """Run the part that the command line names on the device that it names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    parts[args.part](args.device)


PARTS = {"inference": inference, "training": training, "compile": compile_backbone}

if __name__ == "__main__":
    run_part(PARTS, __doc__)
