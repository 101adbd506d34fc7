"""Measure time and peak memory of a ResNet101-FPN Mask R-CNN on one image: ours, torchvision's and Detectron2's.

    python benchmarks/inference.py                # Detectron2's only if it is installed
    python benchmarks/inference.py --output benchmarks/results/inference.md

One image of 800 x 1200 pixels, batch 1, float32, on the CPU, 80 classes, 1,000 proposals and 100 detections with
masks of the whole image. Each model has its own process, which gives its peak memory; they alternate, one forward pass
each, so that other programs affect all of them equally. The weights are random and scaled so that all models have
1,000 proposals and 100 detections. Seconds depend on the machine and its load: compare the ratios. CPU seconds, summed
over the threads, vary least.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import (
    DETECTIONS,
    HEIGHT,
    PROPOSALS,
    WIDTH,
    build_detectron2,
    build_torchvision,
    calibrate,
    make_image,
    make_run,
)
from torch import nn

import d2_maskrcnn


def count(model: nn.Module, run: Callable[[], int]) -> tuple[int, int]:
    """Return the number of proposals and of detections of one forward pass."""
    proposals: list[int] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        per_image = next(arg for arg in args if isinstance(arg, list))
        proposals.append(len(per_image[0]))

    hook = model.get_submodule("roi_heads").register_forward_pre_hook(record)
    detections = run()
    hook.remove()
    return proposals[0], detections


def peak_gigabytes() -> float:
    """Return the peak resident memory of this process in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if platform.system() == "Darwin" else 2**20)


@torch.no_grad()
def work(name: str) -> None:
    """Build a model, print a summary, then time a forward pass for each line on stdin."""
    torch.manual_seed(0)
    model = build_torchvision() if name == "torchvision" else build_detectron2(ours=name == "d2_maskrcnn")
    run = make_run(model.eval(), make_image())
    loaded = peak_gigabytes()
    calibrate(model, run)
    proposals, detections = count(model, run)
    print(json.dumps({"proposals": proposals, "detections": detections, "loaded": loaded}), flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak_gigabytes()}), flush=True)


class Worker:
    """A process with one model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},  # waiting threads leave the cores to the others
        )
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peak = 0.0
        first = self._read()
        self.loaded, counts = first["loaded"], (first["proposals"], first["detections"])
        if counts != (PROPOSALS, DETECTIONS):
            raise RuntimeError(f"{name} has {counts} proposals and detections instead of {(PROPOSALS, DETECTIONS)}")

    def run(self) -> None:
        """Time one forward pass."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        result = self._read()
        self.seconds.append(result["seconds"])
        self.cpu_seconds.append(result["cpu_seconds"])
        self.peak = result["peak"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the process of {self.name} ended with status {self.process.wait()}")


def table(workers: list[Worker]) -> str:
    """Return the results as a Markdown table."""
    base = next(worker for worker in workers if worker.name == "torchvision")
    lines = [
        "| model | median s | / torchvision's | median CPU s | / torchvision's | peak GB | / torchvision's "
        "| memory before the first image, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for worker in workers:
        seconds, base_seconds = statistics.median(worker.seconds), statistics.median(base.seconds)
        cpu, base_cpu = statistics.median(worker.cpu_seconds), statistics.median(base.cpu_seconds)
        lines.append(
            f"| {worker.name} | {seconds:.2f} | {seconds / base_seconds:.2f} | {cpu:.2f} | {cpu / base_cpu:.2f} "
            f"| {worker.peak:.2f} | {worker.peak / base.peak:.2f} | {worker.loaded:.2f} |"
        )
    return "\n".join(lines)


def report(rounds: int) -> str:
    """Measure all models and return the report."""
    names = ["d2_maskrcnn", "torchvision"]
    engine = d2_maskrcnn.engine_info()
    if engine.name == "installed":
        names.append("detectron2")
    workers = [Worker(name) for name in names]
    for _ in range(rounds):
        for worker in workers:
            worker.run()
    for worker in workers:
        worker.close()
    return (
        f"# Inference, one {HEIGHT}x{WIDTH} image\n\n"
        f"ResNet101-FPN Mask R-CNN, float32, batch 1, {PROPOSALS} proposals, {DETECTIONS} detections, {rounds} rounds "
        f"alternating, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, engine: {engine.name} "
        f"detectron2 {engine.version}, load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores. "
        f"Made by `python benchmarks/inference.py`.\n\n{table(workers)}\n"
    )


def main() -> None:
    """Run the benchmark, or one of its worker processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="forward passes of each model (default: 7)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    text = report(args.rounds)
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
