"""Measure time and peak memory of a ResNet101-FPN Mask R-CNN on one image: ours, torchvision's and Detectron2's.

    python benchmarks/inference.py                # Detectron2's only if it is installed
    python benchmarks/inference.py --output benchmarks/results/inference.md

For AVX2 on a processor with AVX-512, prefix ``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
MKL_ENABLE_INSTRUCTIONS=AVX2``.

One image of 800 x 1200 pixels, batch 1, on the CPU, 80 classes, 1,000 proposals and 100 detections with masks of the
whole image, in float32, and in bfloat16 where the processor computes in it natively. Each model has its own process,
which gives its peak memory; they alternate, one forward pass each, so that other programs affect all of them equally.
The weights are random and scaled so that all models have 1,000 proposals and 100 detections. Seconds depend on the
machine and its load: compare the ratios. CPU seconds, summed over the threads, vary least.
"""

import argparse
import importlib
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
    print_report,
)
from stages import stage_table
from torch import nn

import d2_maskrcnn
from d2_maskrcnn.modeling.precision import has_native_bfloat16, set_precision

BFLOAT16 = ", bfloat16"  # suffix of a model's name
IMPORTS = {"torchvision": "torchvision.models.detection", "d2_maskrcnn": "d2_maskrcnn.modeling"}


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


def reset_peak() -> None:
    """Let the peak count from now on, where the system can (Linux)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


@torch.no_grad()
def work(name: str) -> None:
    """Build a model, print a summary, then time a forward pass for each line on stdin."""
    torch.manual_seed(0)
    kind = name.removesuffix(BFLOAT16)
    importlib.import_module(IMPORTS.get(kind, "detectron2.modeling"))
    imported = peak_gigabytes()
    model = build_torchvision() if kind == "torchvision" else build_detectron2(ours=kind == "d2_maskrcnn")
    run = make_run(model.eval(), make_image())
    loaded = peak_gigabytes() - imported
    calibrate(model, run)
    if name.endswith(BFLOAT16) and kind == "d2_maskrcnn":
        set_precision(model, "bfloat16")
    with torch.autocast("cpu", torch.bfloat16, enabled=name.endswith(BFLOAT16) and kind == "torchvision"):
        proposals, detections = count(model, run)
        reset_peak()  # hooks of the calibration and of the count keep tensors that a forward pass frees
        print(json.dumps({"proposals": proposals, "detections": detections, "loaded": loaded}), flush=True)
        for line in sys.stdin:
            if line.strip() == "stages":
                print(json.dumps({"stages": stage_table(model, run)}), flush=True)
                continue
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            peak = peak_gigabytes() - imported
            print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak}), flush=True)


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
        result = self._ask("")
        self.seconds.append(result["seconds"])
        self.cpu_seconds.append(result["cpu_seconds"])
        self.peak = result["peak"]

    def stages(self) -> str:
        """Return the table of the model's stages."""
        table: str = self._ask("stages")["stages"]
        return table

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._read()

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
        "| model | median s | / torchvision's float32 | median CPU s | / torchvision's float32 | peak memory above the "
        "imports', GB | / torchvision's | before the first image, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for worker in workers:
        seconds, base_seconds = statistics.median(worker.seconds), statistics.median(base.seconds)
        cpu, base_cpu = statistics.median(worker.cpu_seconds), statistics.median(base.cpu_seconds)
        # Models in bfloat16 were calibrated in float32, which determines their peak.
        peak = f"{worker.peak:.2f} | {worker.peak / base.peak:.2f}" if BFLOAT16 not in worker.name else "|"
        lines.append(
            f"| {worker.name} | {seconds:.2f} | {seconds / base_seconds:.2f} | {cpu:.2f} | {cpu / base_cpu:.2f} "
            f"| {peak} | {worker.loaded:.2f} |"
        )
    return "\n".join(lines)


def report(rounds: int) -> str:
    """Measure all models and return the report."""
    names = ["d2_maskrcnn", "torchvision"]
    engine, capability = d2_maskrcnn.engine_info(), torch.backends.cpu.get_cpu_capability()
    if engine.name == "installed":
        names.append("detectron2")
    if has_native_bfloat16():
        names += [f"d2_maskrcnn{BFLOAT16}", f"torchvision{BFLOAT16}"]
    workers = [Worker(name) for name in names]
    for _ in range(rounds):
        for worker in workers:
            worker.run()
    stages = {worker.name: worker.stages() for worker in workers if worker.name.startswith("d2_maskrcnn")}
    for worker in workers:
        worker.close()
    sections = "".join(f"\nStages of {name}:\n\n{each}\n" for name, each in stages.items())
    return (
        f"# Inference, one {HEIGHT}x{WIDTH} image\n\n"
        f"ResNet101-FPN Mask R-CNN, batch 1, {PROPOSALS} proposals, {DETECTIONS} detections, {rounds} rounds "
        f"alternating, {torch.get_num_threads()} threads, {capability}, PyTorch {torch.__version__}, "
        f"engine: {engine.name} detectron2 {engine.version}, load average {os.getloadavg()[1]:.1f} on "
        f"{os.cpu_count()} cores. "
        f"Made by `python benchmarks/inference.py`.\n\n{table(workers)}\n{sections}"
    )


def main() -> None:
    """Run the benchmark, or one of its worker processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="forward passes of each model (default: 5)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    print_report(report(args.rounds), args.output)


if __name__ == "__main__":
    main()
