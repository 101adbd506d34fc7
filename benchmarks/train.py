"""Time and memory of a training iteration of ``configs/mrcnn_R101.yaml`` beside a bare torchvision Mask R-CNN.

    python benchmarks/train.py --iterations 5

Three processes, one after the other in each round, on the same drawn pictures of 800x800, two in a batch, float32:

* torchvision: ``MaskRCNN`` with ResNet101-FPN and frozen batch norm, SGD, no more than forward, backward, step;
* plain: this project's trainer with everything switched off that can be;
* full: with moving average, clipping by the global norm, W&B (offline), best checkpoint and early stopping.

Evaluation and checkpoints lie outside of the iterations. CPU seconds are those of all threads of the process; on a
machine that does other work as well they say more than the clock.
"""

import argparse
import json
import os
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

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import d2_maskrcnn  # noqa: E402, F401
from d2_maskrcnn.config_check import load_config  # noqa: E402
from d2_maskrcnn.data import register_own_data  # noqa: E402
from d2_maskrcnn.engine import Trainer  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

ARMS = ("torchvision", "plain", "full")
OFF = ["D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", "0.0", "D2_MASKRCNN.BEST_CHECKPOINT.ENABLED", "False"]
OFF += ["D2_MASKRCNN.VALIDATION_LOSS", "False"]
FULL = ["D2_MASKRCNN.EMA.ENABLED", "True", "D2_MASKRCNN.WANDB.ENABLED", "True", "D2_MASKRCNN.WANDB.MODE", "offline"]
FULL += ["D2_MASKRCNN.EARLY_STOPPING.PATIENCE", "5"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=5, help="measured ones, after one to warm up")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.arm:
        print(json.dumps(measure(args.arm, Path(args.folder), args.iterations)))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder))
        rows = [run_arm(arm, folder, args) for _ in range(args.rounds) for arm in ARMS]
    report(rows, args)


def draw_pictures(folder: Path) -> None:
    script = REPO / "datasets" / "prepare_shapes.py"
    command = [sys.executable, str(script), "--output", str(folder / "shapes"), "--train", "8", "--val", "2"]
    subprocess.run([*command, "--size", "800"], check=True, stdout=subprocess.DEVNULL)


def run_arm(arm: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--arm", arm, "--folder", folder]
    command += ["--iterations", str(args.iterations), "--threads", str(args.threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(output.splitlines()[-1])


def measure(arm: str, folder: Path, iterations: int) -> dict[str, Any]:
    trainer = build_trainer(arm, folder)
    trainer.resume_or_load(resume=False)
    with EventStorage(0) as trainer.storage:
        if arm == "torchvision":
            seconds, cpu = timed(bare_step(trainer), iterations)
        else:
            trainer.before_train()
            seconds, cpu = timed(lambda i: whole_step(trainer, i), iterations)
            if trainer.wandb_session is not None:
                trainer.wandb_session.finish()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"arm": arm, "seconds": seconds, "cpu": cpu, "peak_gib": peak}


def build_trainer(arm: str, folder: Path) -> Trainer:
    data = folder / "shapes"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "4", "SOLVER.IMS_PER_BATCH", "2"]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(800,)", "INPUT.MASK_FORMAT", "bitmask", "DATALOADER.NUM_WORKERS", "0"]
    opts += ["OUTPUT_DIR", str(folder / f"{arm}-{os.getpid()}"), "SEED", "1", *(FULL if arm == "full" else OFF)]
    for key, name in (("TRAIN", "train"), ("VAL", "val")):
        opts += [f"D2_MASKRCNN.DATA.{key}_JSON", str(data / "annotations" / f"instances_{name}.json")]
        opts += [f"D2_MASKRCNN.DATA.{key}_IMAGES", str(data / name)]
    cfg = load_config(str(REPO / "configs" / "mrcnn_R101.yaml"), opts)
    register_own_data(cfg)
    Path(cfg.OUTPUT_DIR).mkdir()
    cfg.freeze()
    torch.manual_seed(0)
    return Trainer(cfg)


def timed(step: Callable[[int], None], iterations: int) -> tuple[list[float], list[float]]:
    seconds, cpu = [], []
    for iteration in range(iterations + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        step(iteration)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return seconds[1:], cpu[1:]


def whole_step(trainer: Trainer, iteration: int) -> None:
    trainer.iter = iteration
    trainer.before_step()
    trainer.run_step()
    trainer.after_step()


def bare_step(trainer: Trainer) -> Callable[[int], None]:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet101", weights=None, trainable_layers=3)
    model = MaskRCNN(backbone, num_classes=5, min_size=800, max_size=1333).train()
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


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    print(
        f"{args.threads} threads, PyTorch {torch.__version__}, {args.rounds} rounds of {args.iterations} iterations\n"
    )
    print("| | seconds | CPU seconds | peak GiB | CPU seconds to torchvision's | to plain |")
    print("|---|---|---|---|---|---|")
    cpu = {arm: statistics.median(v for row in rows if row["arm"] == arm for v in row["cpu"]) for arm in ARMS}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        seconds = statistics.median(v for row in own for v in row["seconds"])
        peak = max(row["peak_gib"] for row in own)
        to_bare, to_plain = cpu[arm] / cpu["torchvision"], cpu[arm] / cpu["plain"]
        print(f"| {arm} | {seconds:.2f} | {cpu[arm]:.2f} | {peak:.2f} | {to_bare:.3f} | {to_plain:.3f} |")


if __name__ == "__main__":
    main()
