"""Compare the training losses of both engines, from the same seed, and draw them.

    python datasets/prepare_shapes.py --output datasets/shapes
    python benchmarks/engine_losses.py --installed PYTHON --weights output/quickstart/model_final.pth

PYTHON is an interpreter that has Detectron2. Each training runs in a process of its own:

* own: ``configs/quickstart.yaml``, whose components are this project's on both engines;
* zoo: the model zoo's ``mask_rcnn_R_101_FPN_3x.yaml``, narrowed, whose names mean Detectron2's components on the
  installed engine and this project's on the embedded one, fine-tuned from the quick start's weights;
* zoo64: the same in double precision, where rounding does not change which proposals are sampled;
* zoo-threads: the same as zoo on the installed engine with two threads, which round differently.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
# Setup and engine of each training.
TRAININGS = [(setup, engine) for setup in ("own", "zoo", "zoo64") for engine in ("embedded", "installed")]
TRAININGS.append(("zoo-threads", "installed"))
NARROW: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 256,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
    "MODEL.ROI_HEADS.NUM_CLASSES": 5,  # another number than the weights', so that the predictors start anew
    "INPUT.MIN_SIZE_TRAIN": (128,),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.002,
    "SOLVER.WARMUP_ITERS": 10,
}


def train(setup: str, data: Path, weights: Path, iterations: int) -> list[float]:
    """Train in this process and return the total loss of each iteration."""
    import torch

    import d2_maskrcnn  # noqa: F401 - chooses the engine
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import DefaultTrainer
    from detectron2.utils.env import seed_all_rng

    class DoublePrecisionTrainer(DefaultTrainer):
        @classmethod
        def build_model(cls, cfg: Any) -> torch.nn.Module:
            torch.set_default_dtype(torch.float64)
            model = super().build_model(cfg)
            torch.set_default_dtype(torch.float32)
            return model

    torch.set_num_threads(2 if setup == "zoo-threads" else 1)
    register_coco_instances("shapes", {}, str(data / "annotations/instances_train.json"), str(data / "train"))
    cfg = _config(setup, weights)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes",), ()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = iterations, (), 10**9
    cfg.SEED = 1
    if setup == "zoo64":
        _keep_double_precision()
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        seed_all_rng(1)
        trainer = DoublePrecisionTrainer(cfg) if setup == "zoo64" else DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    return [value for value, _ in trainer.storage.history("total_loss").values()]


def _config(setup: str, weights: Path) -> Any:
    from d2_maskrcnn.config.loading import load_config
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    if setup == "own":
        return load_config(str(REPO / "configs/quickstart.yaml"), [])
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml"))
    cfg.merge_from_list([part for item in NARROW.items() for part in item])
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


def _keep_double_precision() -> None:
    """Keep float64 where the engines convert boxes to float32; those of the annotations are float32 anyway."""
    import torch
    from torch.nn import functional

    from detectron2.structures import Boxes

    def init(boxes: Boxes, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.tensor(tensor, dtype=torch.float32)
        boxes.tensor = tensor.double().reshape(-1, 4)

    convert = torch.Tensor.float
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else convert(x)  # type: ignore[assignment]
    Boxes.__init__ = init  # type: ignore[method-assign]
    cross_entropy = functional.binary_cross_entropy_with_logits
    functional.binary_cross_entropy_with_logits = lambda x, y, **options: cross_entropy(x, y.to(x.dtype), **options)


def run_all(python: dict[str, str], arguments: list[Any]) -> dict[tuple[str, str], list[float]]:
    """Run each training in a process of its own; return the losses by (setup, engine)."""
    losses = {}
    for setup, engine in TRAININGS:
        command = [python[engine], __file__, "--setup", setup, *arguments]
        environment = {**os.environ, "D2_MASKRCNN_ENGINE": engine, "PYTHONPATH": str(REPO)}
        output = subprocess.run(map(str, command), env=environment, check=True, capture_output=True, text=True).stdout
        losses[setup, engine] = json.loads(output.splitlines()[-1])
    return losses


def report(losses: dict[tuple[str, str], list[float]]) -> None:
    """Print how far each pair of curves is apart."""
    pairs = [((setup, "embedded"), (setup, "installed")) for setup in ("own", "zoo", "zoo64")]
    for first, second in [*pairs, (("zoo-threads", "installed"), ("zoo", "installed"))]:
        apart = [abs(a - b) for a, b in zip(losses[first], losses[second], strict=True)]
        means = [sum(losses[key]) / len(apart) for key in (first, second)]
        print(f"{first} - {second}: iteration 0 {apart[0]:.1e}, largest {max(apart):.1e}, means {means}")


def draw(losses: dict[tuple[str, str], list[float]], path: Path) -> None:
    """Draw the curves side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "own": "this project's components, float32",
        "zoo64": "names of the model zoo, float64",
        "zoo": "names of the model zoo, float32",
    }
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
    for panel, (setup, title) in zip(panels, titles.items(), strict=True):
        panel.plot(losses[setup, "installed"], color="tab:orange", linewidth=3, label="Detectron2")
        if setup == "zoo":
            panel.plot(losses["zoo-threads", "installed"], color="tab:gray", label="Detectron2, two threads")
        panel.plot(losses[setup, "embedded"], color="tab:blue", linestyle="--", label="embedded engine")
        panel.set(title=title, xlabel="iteration")
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylabel("total loss")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Compare the engines, or run one training for the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--installed", default=sys.executable, help="interpreter that has Detectron2")
    parser.add_argument("--data", type=Path, default=REPO / "datasets/shapes")
    parser.add_argument("--weights", type=Path, required=True, help="weights of the quick start")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--output", type=Path, default=REPO / "docs/images/engine_losses.png")
    parser.add_argument("--setup", help="run this training only and print its losses")
    args = parser.parse_args()
    if args.setup:
        print(json.dumps(train(args.setup, args.data, args.weights, args.iterations)))
        return
    arguments = ["--data", args.data, "--weights", args.weights, "--iterations", args.iterations]
    losses = run_all({"embedded": sys.executable, "installed": args.installed}, arguments)
    report(losses)
    draw(losses, args.output)


if __name__ == "__main__":
    main()
