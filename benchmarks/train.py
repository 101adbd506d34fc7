"""Measure time and memory of a training iteration of ``configs/mrcnn_R101.yaml``, against torchvision's Mask R-CNN.

    python benchmarks/train.py --save train.json      # once or several times: each run adds a round to the file
    python benchmarks/train.py --report train.json
    python benchmarks/train.py --setups torchvision plain    # about three minutes

For AVX2 on a processor with AVX-512, prefix ``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
MKL_ENABLE_INSTRUCTIONS=AVX2``.

Setups, on the same batches of two synthetic 800x800 images, in float32:

* torchvision: ``MaskRCNN`` with ResNet101-FPN and frozen batch norm, SGD; only forward, backward and step;
* plain: this project's trainer with all optional features off;
* full: with moving average, clipping, W&B (offline), best checkpoint, early stopping, figures and validation losses;
* accumulate: full, with each batch in two micro-batches;
* checkpointing: plain, with activation checkpointing.

In a round the setups alternate, iteration by iteration, in one process. Then each runs in a process of its own, which
gives its peak memory. Evaluations are not part of the iterations and are timed separately.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from models import REPO, build_torchvision, disable_residuals, torchvision_batch

import d2_maskrcnn
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.engine import Trainer
from d2_maskrcnn.evaluation.validation_loss import validation_losses
from detectron2.utils.events import EventStorage

SETUPS = ("torchvision", "plain", "full", "accumulate", "checkpointing")
OURS = "D2_MASKRCNN."
OFF = [OURS + "SOLVER.MAX_GRAD_NORM", "0.0", OURS + "BEST_CHECKPOINT.ENABLED", "False"]
OFF += [OURS + "VALIDATION_LOSS", "False", OURS + "EVALUATION.FIGURES", "False"]
FULL = [OURS + "EMA.ENABLED", "True", OURS + "WANDB.ENABLED", "True", OURS + "WANDB.MODE", "offline"]
FULL += [OURS + "EARLY_STOPPING.PATIENCE", "5", OURS + "SOLVER.REFERENCE_BATCH", "16"]
OPTIONS = {"torchvision": OFF, "plain": OFF, "full": FULL, "accumulate": [*FULL, OURS + "SOLVER.ACCUMULATE", "2"]}
OPTIONS["checkpointing"] = [*OFF, OURS + "SOLVER.ACTIVATION_CHECKPOINTING", "True"]
Step = Callable[[int], None]


def main() -> None:
    """Measure a round, or print the report of earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations of each setup, after a warm-up")
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--what", nargs="+", choices=("time", "memory", "evaluation"), default=["time", "memory"])
    parser.add_argument("--save", type=Path, help="JSON file that the round is added to")
    parser.add_argument("--report", type=Path, help="print the table of such a file, without measuring")
    parser.add_argument("--peak-of", choices=SETUPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_gib(args.peak_of, args.folder))
    elif args.report:
        report(json.loads(args.report.read_text()))
    else:
        rounds = json.loads(args.save.read_text()) if args.save and args.save.exists() else []
        rounds.append(measure_round(args))
        if args.save:
            args.save.write_text(json.dumps(rounds))
        report(rounds)


def measure_round(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what ``--what`` selects."""
    results: dict[str, Any] = {"threads": args.threads, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        if "time" in args.what:
            results["seconds"] = time_alternating(args.setups, folder, args.iterations)
        if "memory" in args.what:
            results["peak_gib"] = {name: peak_in_own_process(name, folder, args.threads) for name in args.setups}
        if "evaluation" in args.what:
            results["evaluation"] = time_evaluation(folder)
    return results


def make_images(folder: Path) -> None:
    """Write a dataset of 800x800 images with geometric shapes."""
    script = REPO / "datasets" / "prepare_shapes.py"
    command = [sys.executable, str(script), "--output", str(folder / "shapes"), "--train", "8", "--val", "4"]
    subprocess.run([*command, "--size", "800"], check=True, stdout=subprocess.DEVNULL)


def time_alternating(setups: list[str], folder: Path, iterations: int) -> dict[str, list[float]]:
    """Return the seconds of each setup's iterations; the order of the setups is reversed in every second turn."""
    steps = {name: build_step(name, folder) for name in setups}
    seconds: dict[str, list[float]] = {name: [] for name in setups}
    for iteration in range(iterations + 1):
        for name in setups if iteration % 2 else setups[::-1]:
            start = time.perf_counter()
            steps[name](iteration)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def peak_in_own_process(setup: str, folder: Path, threads: int) -> float:
    """Return the peak memory of a setup in GiB, measured in a new process."""
    command = [sys.executable, __file__, "--peak-of", setup, "--folder", str(folder), "--threads", str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return float(output.splitlines()[-1])


def peak_gib(setup: str, folder: Path) -> float:
    """Return this process's peak memory in GiB after two iterations of a setup."""
    step = build_step(setup, folder)
    for iteration in range(2):
        step(iteration)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def time_evaluation(folder: Path) -> dict[str, float]:
    """Return the seconds per image of COCO's metrics and of the validation losses."""
    trainer = build_trainer("full", folder)
    count = 4
    parts: dict[str, Callable[[], Any]] = {
        "coco": lambda: trainer.test(trainer.cfg, trainer.model),
        "validation_losses": lambda: validation_losses(trainer.cfg, trainer.model),
    }
    seconds = {}
    for name, part in parts.items():
        part()
        start = time.perf_counter()
        part()
        seconds[name] = (time.perf_counter() - start) / count
    return seconds


def build_trainer(setup: str, folder: Path) -> Trainer:
    """Build the trainer of a setup; torchvision's only provides the batches."""
    data = folder / "shapes"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "4", "SOLVER.IMS_PER_BATCH", "2"]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(800,)", "INPUT.MASK_FORMAT", "bitmask", "DATALOADER.NUM_WORKERS", "0"]
    # The inspection limits its own share of the time (INSPECT.MAX_SHARE), so it is not compared.
    opts += [OURS + "INSPECT.ENABLED", "False", "TEST.EVAL_PERIOD", "5000"]
    opts += ["OUTPUT_DIR", str(folder / f"{setup}-{os.getpid()}"), "SEED", "1"]
    opts += ["SOLVER.BASE_LR", "0.0008" if FULL[0] in OPTIONS[setup] else "0.0001", *OPTIONS[setup]]
    for key, name in (("TRAIN", "train"), ("VAL", "val")):
        opts += [f"D2_MASKRCNN.DATA.{key}_JSON", str(data / "annotations" / f"instances_{name}.json")]
        opts += [f"D2_MASKRCNN.DATA.{key}_IMAGES", str(data / name)]
    cfg = load_config(str(REPO / "configs" / "mrcnn_R101.yaml"), opts)
    register_own_data(cfg)
    Path(cfg.OUTPUT_DIR).mkdir()
    cfg.freeze()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    disable_residuals(trainer.model)
    trainer.resume_or_load(resume=False)
    return trainer


def build_step(setup: str, folder: Path) -> Step:
    """Return the training iteration of a setup."""
    trainer = build_trainer(setup, folder)
    if setup == "torchvision":
        return torchvision_step(trainer)
    trainer.storage = EventStorage(0)
    with trainer.storage:
        trainer.before_train()

    def step(iteration: int) -> None:
        trainer.iter = iteration
        with trainer.storage:
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()

    return step


def torchvision_step(trainer: Trainer) -> Step:
    """Return forward, backward and update of torchvision's model on the trainer's batches."""
    model = build_torchvision(classes=4, min_size=800, max_size=1333).train()
    disable_residuals(model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.0001, momentum=0.9, weight_decay=1e-4)
    batches = iter(trainer.train_loader)

    def step(_iteration: int) -> None:
        loss = sum(model(*torchvision_batch(next(batches))).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def report(rounds: list[dict[str, Any]]) -> None:
    """Print all rounds as a Markdown table."""
    threads, capability = rounds[0]["threads"], torch.backends.cpu.get_cpu_capability()
    loads = ", ".join(f"{each['load']:.1f}" for each in rounds)
    print(
        f"{threads} threads, {capability}, Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, {d2_maskrcnn.engine_info().name} engine, {len(rounds)} rounds "
        f"(load average before each: {loads})\n"
    )
    seconds = collect(rounds, "seconds")
    peaks = collect(rounds, "peak_gib")
    print("| setup | iterations | median s | / torchvision's | / plain's | peak GiB | / torchvision's |")
    print("|---|---|---|---|---|---|---|")
    for name in [name for name in SETUPS if name in seconds or name in peaks]:
        cells = [name, str(len(seconds.get(name, [])))]
        cells += [f"{statistics.median(seconds[name]):.2f}" if name in seconds else ""]
        cells += [ratio(seconds, name, base) for base in ("torchvision", "plain")]
        cells += [f"{max(peaks[name]):.2f}" if name in peaks else ""]
        has_both = {name, "torchvision"} <= peaks.keys()
        cells += [f"{max(peaks[name]) / max(peaks['torchvision']):.2f}" if has_both else ""]
        print("| " + " | ".join(cells) + " |")
    for name, values in collect(rounds, "evaluation").items():
        print(f"\n{name}: {statistics.median(values):.2f} s per test image")


def ratio(seconds: dict[str, list[float]], setup: str, base: str) -> str:
    """Return the median over turns of a setup's seconds divided by those of ``base`` in the same turn."""
    if len(seconds.get(setup, [])) != len(seconds.get(base, [])) or setup not in seconds:
        return ""
    return f"{statistics.median(a / b for a, b in zip(seconds[setup], seconds[base], strict=True)):.3f}"


def collect(rounds: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """Return the values of all rounds under ``key``, by name."""
    result: dict[str, list[float]] = {}
    for each in rounds:
        for name, values in each.get(key, {}).items():
            result.setdefault(name, []).extend(values if isinstance(values, list) else [values])
    return result


if __name__ == "__main__":
    main()
