"""Parts of ``gpu.py`` that compare results and count synchronizations; each prints Markdown."""

import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_speed import (
    make_batch,
    narrow_opts,
    our_step,
    print_heading,
    print_table,
    relative_difference,
    run_part,
    synchronize,
)
from models import REPO, build_detectron2, calibrate, disable_residuals, make_image, make_run
from torch import nn
from torch.autograd import DeviceType

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
AREA_TOLERANCE = 1e-2  # masks are pasted in float32: single pixels can differ


@contextmanager
def recorded_synchronizations(counts: Counter[str]) -> Iterator[None]:
    """Count the Python lines in which the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            name = Path(warning.filename)
            name = name.relative_to(REPO) if name.is_relative_to(REPO) else Path(*name.parts[-3:])
            counts[f"{name}:{warning.lineno}"] += 1


def profile(device: str) -> None:
    """Count kernels, copies and host synchronizations of inference and of a training step."""
    tiny = device == "cpu"
    image = make_image(*((96, 128) if tiny else (800, 1200)))
    model = build_detectron2(device=device, opts=narrow_opts() if tiny else ())
    with torch.no_grad():
        calibrate(model, make_run(model.eval(), image))
    run = make_run(model, image)
    trained = build_detectron2(device=device, opts=narrow_opts() if tiny else ())
    disable_residuals(trained)
    step = our_step(trained, make_batch(2, *((128, 128) if tiny else (800, 800))), torch.float32)
    with torch.no_grad():
        profile_one("inference of one image", run, device)
    profile_one("training step of two images", step, device)


def profile_one(title: str, run: Callable[[], Any], device: str) -> None:
    """Print the counts of one call and the operations that take most of the GPU's time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(3):
        run()
    synchronize(device)
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize(device)
    wall = 1e3 * (time.perf_counter() - start)
    averages = profiler.key_averages()
    on_host = [event for event in averages if event.device_type == DeviceType.CPU]
    busy = sum(event.self_device_time_total for event in averages if event not in on_host) / 1e3
    counts = {event.key: event.count for event in averages}
    names = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpyAsync", "cudaLaunchKernel", "cuLaunchKernel")
    copies = {key: count for key, count in counts.items() if key.startswith("Memcpy")}
    print(f"### {title.capitalize()}\n\n{wall:.1f} ms with the profiler, of which the GPU is busy {busy:.1f} ms.\n")
    print_heading("call", "count")
    print_table(*((name, counts.get(name, 0)) for name in names), *copies.items())
    print("\nOperations with the most GPU time (or CPU time on a CPU):\n")
    print_heading("operation", "ms", "count")
    key = "self_device_time_total" if device != "cpu" else "self_cpu_time_total"
    top = sorted(on_host, key=lambda event: -getattr(event, key))[:12]
    print_table(*((f"`{event.key[:80]}`", f"{getattr(event, key) / 1e3:.2f}", event.count) for event in top))
    if device != "cpu":
        lines: Counter[str] = Counter()
        with recorded_synchronizations(lines):
            run()
        print(f"\nThe host waits for the GPU {sum(lines.values())} times:\n")
        print_heading("line", "count")
        print_table(*lines.most_common(30))
    print()


def parity(device: str) -> None:
    """Compare losses, gradients and detections of a narrow model with the CPU's; exit with 1 if they differ."""
    torch.backends.cudnn.allow_tf32 = False
    batch = make_batch(2, 192, 256)
    torch.manual_seed(0)
    source = build_detectron2(opts=narrow_opts())
    with torch.no_grad():
        calibrate(source, make_run(source.eval(), batch[0]["image"]))
    ok = True
    print_heading("type", "value", "largest relative difference", "limit")
    for dtype, limit in TOLERANCE.items():
        results = []
        for place in ("cpu", device):
            model = build_detectron2(device=place, opts=narrow_opts())
            model.load_state_dict(source.state_dict())
            results.append(run_narrow(model.to(dtype).eval(), batch, dtype))
        for name, expected in results[0].items():
            value = results[1][name]
            difference = relative_difference(value, expected)
            allowed = AREA_TOLERANCE if name.endswith("areas") else limit
            if dtype == torch.float32 and name.startswith("detections"):
                allowed = float("inf")
            ok = ok and difference <= allowed
            print_table((str(dtype).removeprefix("torch."), name, f"{difference:.1e}", allowed))
    print("\nDetections in float32 have no limit: rounding can change which of two close scores comes first.")
    sys.exit(0 if ok else 1)


def run_narrow(model: nn.Module, batch: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the losses, the gradient's norm per weight and the detections of a model, on the CPU."""
    batch = [{**item, "image": item["image"].to(dtype)} for item in batch]
    losses = model.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    norms = torch.stack([p.grad.norm().cpu() for p in model.parameters() if p.grad is not None])
    results = {name: loss.detach().cpu() for name, loss in losses.items()} | {"gradient norms": norms}
    with torch.no_grad():
        detections = [item["instances"] for item in model(batch)]
        areas = torch.cat([each.pred_masks.sum(dim=(1, 2)) for each in detections]).cpu()
    results["detections: number"] = torch.tensor([float(len(each)) for each in detections])
    results["detections: boxes"] = torch.cat([each.pred_boxes.tensor for each in detections]).cpu()
    results["detections: scores"] = torch.cat([each.scores for each in detections]).cpu()
    return results | {"detections: mask areas": areas.double()}


PARTS = {"parity": parity, "profile": profile}


if __name__ == "__main__":
    run_part(PARTS, __doc__)
