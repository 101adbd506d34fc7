"""Time and memory of a training iteration of ``configs/mrcnn_R101.yaml`` beside a bare torchvision Mask R-CNN.

    python benchmarks/train.py --save train.json      # once or several times: each run adds a round to the file
    python benchmarks/train.py --report train.json

On the same drawn images of 800x800, two in a batch, float32:

* torchvision: ``MaskRCNN`` with ResNet101-FPN and frozen batch norm, SGD, no more than forward, backward, step;
* plain: this project's trainer with everything switched off that can be;
* full: with moving average, clipping, W&B (offline), best checkpoint, early stopping, figures and validation losses;
* accumulate: full, each batch in two parts.

In a round all take turns, iteration by iteration, in one process. Then each has a process of its own for its peak of
memory. Evaluations and checkpoints lie outside of the iterations: their parts are timed on their own.
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

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import d2_maskrcnn  # noqa: E402
from d2_maskrcnn.config.loading import load_config  # noqa: E402
from d2_maskrcnn.data import register_own_data  # noqa: E402
from d2_maskrcnn.engine import Trainer  # noqa: E402
from d2_maskrcnn.evaluation.validation_loss import validation_losses  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

ARMS = ("torchvision", "plain", "full", "accumulate")
OURS = "D2_MASKRCNN."
OFF = [OURS + "SOLVER.MAX_GRAD_NORM", "0.0", OURS + "BEST_CHECKPOINT.ENABLED", "False"]
OFF += [OURS + "VALIDATION_LOSS", "False", OURS + "EVALUATION.FIGURES", "False"]
FULL = [OURS + "EMA.ENABLED", "True", OURS + "WANDB.ENABLED", "True", OURS + "WANDB.MODE", "offline"]
FULL += [OURS + "EARLY_STOPPING.PATIENCE", "5", OURS + "SOLVER.REFERENCE_BATCH", "16"]
OPTIONS = {"torchvision": OFF, "plain": OFF, "full": FULL, "accumulate": [*FULL, OURS + "SOLVER.ACCUMULATE", "2"]}
Step = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=3, help="measured ones of each, after one to warm up")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--what", nargs="+", choices=("time", "memory", "evaluation"), default=["time", "memory"])
    parser.add_argument("--save", type=Path, help="JSON file that the round is added to")
    parser.add_argument("--report", type=Path, help="only print the table of such a file")
    parser.add_argument("--peak-of", choices=ARMS, help=argparse.SUPPRESS)
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
    found: dict[str, Any] = {"threads": args.threads, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_images(folder)
        if "time" in args.what:
            found["seconds"] = seconds_in_turns(args.arms, folder, args.iterations)
        if "memory" in args.what:
            found["peak_gib"] = {arm: peak_in_own_process(arm, folder, args.threads) for arm in args.arms}
        if "evaluation" in args.what:
            found["evaluation"] = seconds_of_evaluation(folder)
    return found


def draw_images(folder: Path) -> None:
    script = REPO / "datasets" / "prepare_shapes.py"
    command = [sys.executable, str(script), "--output", str(folder / "shapes"), "--train", "8", "--val", "4"]
    subprocess.run([*command, "--size", "800"], check=True, stdout=subprocess.DEVNULL)


def seconds_in_turns(arms: list[str], folder: Path, iterations: int) -> dict[str, list[float]]:
    """Of each arm the seconds of its iterations; every second turn goes through the arms backwards."""
    steps = {arm: build_step(arm, folder) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for iteration in range(iterations + 1):
        for arm in arms if iteration % 2 else arms[::-1]:
            start = time.perf_counter()
            steps[arm](iteration)
            seconds[arm].append(time.perf_counter() - start)
    return {arm: values[1:] for arm, values in seconds.items()}


def peak_in_own_process(arm: str, folder: Path, threads: int) -> float:
    command = [sys.executable, __file__, "--peak-of", arm, "--folder", str(folder), "--threads", str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return float(output.splitlines()[-1])


def peak_gib(arm: str, folder: Path) -> float:
    step = build_step(arm, folder)
    for iteration in range(2):
        step(iteration)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seconds_of_evaluation(folder: Path) -> dict[str, float]:
    """Seconds for each image of the COCO measure and of the validation losses beside it."""
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


def build_trainer(arm: str, folder: Path) -> Trainer:
    data = folder / "shapes"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "4", "SOLVER.IMS_PER_BATCH", "2"]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(800,)", "INPUT.MASK_FORMAT", "bitmask", "DATALOADER.NUM_WORKERS", "0"]
    # The inspection has a budget of its own (INSPECT.MAX_SHARE) and is no part of this comparison.
    opts += [OURS + "INSPECT.ENABLED", "False", "TEST.EVAL_PERIOD", "5000"]
    opts += ["OUTPUT_DIR", str(folder / f"{arm}-{os.getpid()}"), "SEED", "1"]
    opts += ["SOLVER.BASE_LR", "0.0001" if arm in ("torchvision", "plain") else "0.0008", *OPTIONS[arm]]
    for key, name in (("TRAIN", "train"), ("VAL", "val")):
        opts += [f"D2_MASKRCNN.DATA.{key}_JSON", str(data / "annotations" / f"instances_{name}.json")]
        opts += [f"D2_MASKRCNN.DATA.{key}_IMAGES", str(data / name)]
    cfg = load_config(str(REPO / "configs" / "mrcnn_R101.yaml"), opts)
    register_own_data(cfg)
    Path(cfg.OUTPUT_DIR).mkdir()
    cfg.freeze()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    calm(trainer.model)
    trainer.resume_or_load(resume=False)
    return trainer


def calm(model: torch.nn.Module) -> None:
    """Makes residual blocks identities: random weights under frozen norms would let the activations overflow."""
    for module in model.modules():
        last = getattr(module, "bn3", None) or getattr(getattr(module, "conv3", None), "norm", None)
        if last is not None:
            last.weight.zero_()


def build_step(arm: str, folder: Path) -> Step:
    trainer = build_trainer(arm, folder)
    if arm == "torchvision":
        return bare_step(trainer)
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


def bare_step(trainer: Trainer) -> Step:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet101", weights=None, trainable_layers=3)
    model = MaskRCNN(backbone, num_classes=5, min_size=800, max_size=1333).train()
    calm(model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.0001, momentum=0.9, weight_decay=1e-4)
    batches = iter(trainer.train_loader)

    def step(_iteration: int) -> None:
        batch = next(batches)
        images = [item["image"].float() / 255 for item in batch]
        targets = [
            {
                "boxes": item["instances"].gt_boxes.tensor,
                "labels": item["instances"].gt_classes + 1,
                "masks": item["instances"].gt_masks.tensor.to(torch.uint8),
            }
            for item in batch
        ]
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def report(rounds: list[dict[str, Any]]) -> None:
    threads = rounds[0]["threads"]
    loads = ", ".join(f"{each['load']:.1f}" for each in rounds)
    print(
        f"{threads} threads, Python {platform.python_version()}, PyTorch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {d2_maskrcnn.engine_info().name} engine, {len(rounds)} rounds (load average "
        f"before each: {loads})\n"
    )
    seconds = collect(rounds, "seconds")
    peaks = collect(rounds, "peak_gib")
    print("| | iterations | median s | to torchvision's | to plain | peak GiB | to torchvision's |")
    print("|---|---|---|---|---|---|---|")
    for arm in ARMS:
        cells = [arm, str(len(seconds.get(arm, [])))]
        cells += [f"{statistics.median(seconds[arm]):.2f}" if arm in seconds else ""]
        cells += [ratio(seconds, arm, base) for base in ("torchvision", "plain")]
        cells += [f"{max(peaks[arm]):.2f}" if arm in peaks else ""]
        cells += [f"{max(peaks[arm]) / max(peaks['torchvision']):.2f}" if {arm, "torchvision"} <= peaks.keys() else ""]
        print("| " + " | ".join(cells) + " |")
    for name, values in collect(rounds, "evaluation").items():
        print(f"\n{name}: {statistics.median(values):.2f} s for each test image")


def ratio(seconds: dict[str, list[float]], arm: str, base: str) -> str:
    """The median over turns of an arm's seconds to those of ``base`` in the same turn."""
    if len(seconds.get(arm, [])) != len(seconds.get(base, [])) or arm not in seconds:
        return ""
    return f"{statistics.median(a / b for a, b in zip(seconds[arm], seconds[base], strict=True)):.3f}"


def collect(rounds: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for each in rounds:
        for name, values in each.get(key, {}).items():
            found.setdefault(name, []).extend(values if isinstance(values, list) else [values])
    return found


if __name__ == "__main__":
    main()
