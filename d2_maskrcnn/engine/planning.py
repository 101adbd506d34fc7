"""Plan a training from the number of images, the batch size and the sizes of the objects."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.config.keys import get_value
from d2_maskrcnn.engine.data_summary import DataSummary
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode, get_cfg

SEEN_IMAGES = 4000  # images that fine-tuning sees at least, however small the dataset is
SEEN_FROM_SCRATCH = 20_000
EPOCHS = (12, 100)  # fewest and most of fine-tuning; 12 is the model zoo's 1x schedule
EPOCHS_FROM_SCRATCH = (36, 300)
EVALUATIONS = 20
CHECKPOINTS = 4
# A model that can detect objects already forgets less, and few images are fitted less closely, with a lower rate than
# that of its training: a quarter of it up to 1,000 images, the same from 100,000, about COCO's number, on.
FINE_TUNING_RATE = 0.25
RATE_IMAGES = (1000, 100_000)
SCALE_JITTER = (0.875, 1, 1.125)  # of a single image size for training; the zoo's sizes are 0.8 to 1 of the largest
STEPS = (0.75, 0.92)  # shares of the training after which the learning rate falls, about those of the zoo's 3x schedule
PATIENCE = 0.5  # share of the training without a better evaluation: under a cosine, the last half improves most
WARMUP = 1000  # iterations at most
BATCHES = (2, 16)  # smallest, and most images per process
FEWEST_ITERATIONS = 500  # batches are smaller where there are few images
FULL_SIZE = 800 * 1333  # pixels of a training image
MEMORY_PER_IMAGE = 5.0  # GiB of a GPU: ResNet101-FPN, images of FULL_SIZE
LEAST_SHARE = 0.1  # of that, of small images: the heads' share does not depend on the size
OUTLIERS = 0.05  # share of objects that may be outside the range of the anchors
# A model that starts from random weights: group norm and AdamW train with small batches, and nothing is frozen.
FROM_SCRATCH = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.FPN.NORM": "GN",
    "D2_MASKRCNN.RESNETS.ZERO_INIT_RESIDUAL": True,
    "D2_MASKRCNN.SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.BASE_LR": 0.0002,
    "SOLVER.WEIGHT_DECAY": 0.05,
}


@dataclass
class Plan:
    """A planned training.

    Attributes:
        settings: config keys and values.
        lines: the plan in words, one line each.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def plan_training(
    cfg: CfgNode,
    train: DataSummary,
    val: DataSummary,
    *,
    given: Collection[str] = (),
    epochs: float | None = None,
    from_scratch: bool = False,
    fine_tuning: bool = True,
    processes: int = 1,
) -> Plan:
    """Plan a training.

    Args:
        cfg: model, optimizer and learning rate to start from; not changed. ``SOLVER.BASE_LR`` is the
            rate for its ``SOLVER.IMS_PER_BATCH`` and is scaled: linearly for SGD, by the square root for AdamW.
            Steps of the rate are replaced by a cosine, and a single size of training images by several.
        train, val: the data.
        given: keys of ``cfg`` that the user has set; their values are kept.
        epochs: passes over the training images; None for a number by the size of the data.
        from_scratch: whether the model starts from random weights, which takes longer.
        fine_tuning: whether the weights to start from are those of a detector, not only of a backbone; with few images
            the rate is lower then.
        processes: number of processes.

    Raises:
        UserError: ``epochs`` or the given ``SOLVER.IMS_PER_BATCH`` is not above 0.
    """
    if epochs is not None and not 0 < epochs < math.inf:
        raise UserError(f"epochs is {epochs:g}; expected a number above 0.")
    if "SOLVER.IMS_PER_BATCH" in given and cfg.SOLVER.IMS_PER_BATCH < 1:
        raise UserError(f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected at least 1 image per iteration.")
    planner = _Planner(cfg, given)
    images = max(train.images_with_objects if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else train.images, 1)
    if epochs is None:
        epochs = _epochs(images, from_scratch)
    planner.plan_sizes()
    planner.plan_batch(images, images * epochs, _aspect_ratio(train), processes)
    planner.plan_rate(_rate_share(images) if fine_tuning and not from_scratch else 1)
    planner.plan_schedule(images, val.images, epochs)
    planner.plan_objects(train, val, from_scratch)
    planner.put("DATALOADER.NUM_WORKERS", _workers(planner.get("MODEL.DEVICE"), processes))
    return planner.plan


class _Planner:
    """Collect the settings of a plan over a config."""

    def __init__(self, cfg: CfgNode, given: Collection[str]) -> None:
        self.cfg, self.given, self.plan = cfg, set(given), Plan()

    def get(self, key: str) -> Any:
        return self.plan.settings.get(key, get_value(self.cfg, key))

    def put(self, key: str, value: Any) -> None:
        if key not in self.given:
            self.plan.settings[key] = value

    def say(self, name: str, text: str) -> None:
        self.plan.lines.append(f"{name:12}{text}")

    def plan_sizes(self) -> None:
        """Vary the size of training images, unless the config does."""
        sizes, is_chosen = self.get("INPUT.MIN_SIZE_TRAIN"), self.get("INPUT.MIN_SIZE_TRAIN_SAMPLING") == "choice"
        if len(sizes) == 1 and sizes[0] > 0 and is_chosen and not self.get("D2_MASKRCNN.INPUT.LSJ.ENABLED"):
            self.put("INPUT.MIN_SIZE_TRAIN", tuple(round(sizes[0] * scale) for scale in SCALE_JITTER))

    def plan_batch(self, images: int, seen: float, aspect_ratio: float, processes: int) -> None:
        """Choose the batch size by the memory, and no larger than the one that the learning rate was chosen for."""
        short, longest = max(self.get("INPUT.MIN_SIZE_TRAIN")), self.get("INPUT.MAX_SIZE_TRAIN")
        pixels = short * min(longest, short * aspect_ratio)
        fits = _batch_per_process(self.get("MODEL.DEVICE"), max(pixels / FULL_SIZE, LEAST_SHARE)) * processes
        batch = min(fits, max(min(self._reference_batch(), int(seen / FEWEST_ITERATIONS)), BATCHES[0]), images)
        self.put("SOLVER.IMS_PER_BATCH", max(batch // processes, 1) * processes)

    def _reference_batch(self) -> int:
        """Return the batch size that the config's learning rate was chosen for."""
        return int(self.cfg.D2_MASKRCNN.SOLVER.REFERENCE_BATCH or self.cfg.SOLVER.IMS_PER_BATCH)

    def plan_rate(self, share: float) -> None:
        """Scale the learning rate to the batch size and by ``share``, and let it fall along a cosine."""
        ratio = self.get("SOLVER.IMS_PER_BATCH") / self._reference_batch()
        if self.get("D2_MASKRCNN.SOLVER.OPTIMIZER") == "AdamW":
            ratio = math.sqrt(ratio)
        if "SOLVER.BASE_LR" not in self.given:
            self.put("SOLVER.BASE_LR", float(f"{self.cfg.SOLVER.BASE_LR * ratio * share:.3g}"))
            self.put("D2_MASKRCNN.SOLVER.REFERENCE_BATCH", 0)
        of_steps = ("SOLVER.STEPS", "SOLVER.GAMMA")
        if self.get("SOLVER.LR_SCHEDULER_NAME") == "WarmupMultiStepLR" and self.given.isdisjoint(of_steps):
            self.put("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
        if self.get("SOLVER.LR_SCHEDULER_NAME") == "WarmupCosineLR":
            for key in of_steps:  # unused: with their defaults, no warning says so
                self.put(key, get_value(get_cfg(), key))

    def plan_schedule(self, images: int, val_images: int, epochs: float) -> None:
        per_epoch = images / self.get("SOLVER.IMS_PER_BATCH")
        self.put("SOLVER.MAX_ITER", max(math.ceil(epochs * per_epoch), 1))
        total = self.get("SOLVER.MAX_ITER")
        # At most EVALUATIONS, and none more often than after as many training images as it has validation images.
        period = max(math.ceil(total / EVALUATIONS), math.ceil(val_images / images * per_epoch), 1)
        self.put("TEST.EVAL_PERIOD", min(_whole_epochs(period, per_epoch), total))
        self.put("SOLVER.CHECKPOINT_PERIOD", max(self.get("TEST.EVAL_PERIOD"), math.ceil(total / CHECKPOINTS)))
        self.put("SOLVER.WARMUP_ITERS", min(WARMUP, total // 10))
        if self.get("SOLVER.LR_SCHEDULER_NAME") == "WarmupMultiStepLR":
            self.put("SOLVER.STEPS", tuple(sorted({step for share in STEPS if (step := int(share * total)) > 0})))
        self.put("D2_MASKRCNN.LOG_PERIOD", min(20, math.ceil(total / 20)))
        if self.get("TEST.EVAL_PERIOD"):
            evaluations = total * PATIENCE / self.get("TEST.EVAL_PERIOD")
            self.put("D2_MASKRCNN.EARLY_STOPPING.PATIENCE", max(5, math.ceil(evaluations)))
        self._say_schedule(total, per_epoch)

    def _say_schedule(self, total: int, per_epoch: float) -> None:
        batch, period = self.get("SOLVER.IMS_PER_BATCH"), self.get("TEST.EVAL_PERIOD")
        steps = ", ".join(f"{step:,}" for step in self.get("SOLVER.STEPS"))
        schedules = {"WarmupMultiStepLR": f"lower after {steps}", "WarmupCosineLR": "then lower along a cosine"}
        name, patience = self.get("D2_MASKRCNN.BEST_CHECKPOINT.METRIC"), self.get("D2_MASKRCNN.EARLY_STOPPING.PATIENCE")
        self.say("epochs", f"{_short(total / per_epoch)} ({total:,} iterations with batches of {batch})")
        self.say(
            "rate",
            f"{self.get('SOLVER.BASE_LR'):.3g} ({self.get('D2_MASKRCNN.SOLVER.OPTIMIZER')}), warm-up over "
            f"{self.get('SOLVER.WARMUP_ITERS'):,} iterations, "
            + schedules.get(self.get("SOLVER.LR_SCHEDULER_NAME"), f"then {self.get('SOLVER.LR_SCHEDULER_NAME')}"),
        )
        epochs = _short(period / per_epoch)
        every = "every epoch" if epochs == "1" else f"every {epochs} epochs"
        often = f"{every} ({period:,} iterations)" if period else "at the end"
        passes = _short(patience * period / per_epoch)
        stops = f"; stops after {passes} epochs without a better one" if patience and period else ""
        self.say("evaluation", f"{often}; the best {name} is kept{stops}")
        self.say("checkpoints", f"every {self.get('SOLVER.CHECKPOINT_PERIOD'):,} iterations")

    def plan_objects(self, train: DataSummary, val: DataSummary, from_scratch: bool) -> None:
        self.put("INPUT.MASK_FORMAT", "bitmask" if train.uses_rle else "polygon")
        most = max(train.most_objects, val.most_objects)
        for key in ("TEST.DETECTIONS_PER_IMAGE", "MODEL.RPN.POST_NMS_TOPK_TEST"):
            if 0 <= self.get(key) < most:
                self.put(key, math.ceil(1.2 * most / 50) * 50)
        self.say("detections", f"up to {self.get('TEST.DETECTIONS_PER_IMAGE')} per image; the data has up to {most}")
        sizes = list(self.get("INPUT.MIN_SIZE_TRAIN"))
        shown = f"{sizes[0]}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
        self.say("images", f"shorter side {shown} pixels ({self.get('INPUT.MIN_SIZE_TEST')} in evaluations)")
        self._plan_anchors(train, from_scratch)

    def _plan_anchors(self, train: DataSummary, from_scratch: bool) -> None:
        short, long = self.get("INPUT.MIN_SIZE_TEST"), self.get("INPUT.MAX_SIZE_TEST")
        if short == 0 or len(train.sides) == 0:
            return
        objects = train.sides * np.minimum(short, long / train.longest)
        anchors = [size for level in self.get("MODEL.ANCHOR_GENERATOR.SIZES") for size in level]
        factor = _best_factor(objects, anchors)
        low, high = np.percentile(objects, (5, 95))
        objects_text = f"objects {low:.0f} to {high:.0f}"
        text = f"{min(anchors):.3g} to {max(anchors):.3g} pixels; {objects_text}"
        if factor == 1:
            self.say("anchors", f"{text}: they fit")
            return
        scaled = [[size * factor for size in level] for level in self.get("MODEL.ANCHOR_GENERATOR.SIZES")]
        if from_scratch and "MODEL.ANCHOR_GENERATOR.SIZES" not in self.given:
            self.put("MODEL.ANCHOR_GENERATOR.SIZES", scaled)
            self.say(
                "anchors",
                f"{min(anchors) * factor:.3g} to {max(anchors) * factor:.3g} pixels; {objects_text}",
            )
        else:
            share = 100 * _out_of_range(objects, anchors)
            self.say(
                "anchors",
                f"{text}: {share:.0f}% do not fit; consider INPUT.MIN_SIZE_* {short / factor:.0f}, or "
                f"MODEL.ANCHOR_GENERATOR.SIZES {scaled}",
            )


def _epochs(images: int, from_scratch: bool) -> float:
    seen = SEEN_FROM_SCRATCH if from_scratch else SEEN_IMAGES
    fewest, most = EPOCHS_FROM_SCRATCH if from_scratch else EPOCHS
    return min(max(seen / images, fewest), most)


def _rate_share(images: int) -> float:
    """Return the share of the config's learning rate for fine-tuning a detector on a number of images."""
    few, many = RATE_IMAGES
    progress = math.log(images / few) / math.log(many / few)
    return FINE_TUNING_RATE ** (1 - min(max(progress, 0), 1))


def _aspect_ratio(data: DataSummary) -> float:
    """Return the largest ratio of longer to shorter side of an image with objects; 4:3 if there is none."""
    return float(data.longest.max(initial=0)) or 4 / 3


def _batch_per_process(device: str, image_share: float) -> int:
    """Return the number of images that a process trains on together.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        image_share: size of an image as a share of ``FULL_SIZE``.
    """
    fewest, most = BATCHES
    count = fewest / image_share  # on a CPU larger batches are no faster, except of small images
    if device.startswith("cuda") and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(torch.device(device)).total_memory / 2**30
        count = memory / MEMORY_PER_IMAGE / image_share
    return int(min(2 ** math.floor(math.log2(max(count, 1))), most))


def _workers(device: str, processes: int) -> int:
    """Return the number of loader processes; fewer on a CPU, which the model needs itself, and 0 with few cores."""
    cores = (os.cpu_count() or 1) // processes
    return min(4, cores - 1) if device.startswith("cuda") else min(2, max(cores // 4, 0))


def _whole_epochs(iterations: int, per_epoch: float) -> int:
    """Round a number of iterations up to whole epochs."""
    return math.ceil(math.ceil(iterations / per_epoch - 1e-6) * per_epoch)


def _short(number: float) -> str:
    """Return a number with one decimal, without a trailing zero."""
    return f"{number:.1f}".removesuffix(".0")


def _out_of_range(objects: np.ndarray, anchors: Sequence[float]) -> float:
    """Return the share of objects of less than half of the smallest or more than twice the largest anchor's side."""
    return float(np.mean((objects < min(anchors) / 2) | (objects > max(anchors) * 2)))


def _best_factor(objects: np.ndarray, anchors: Sequence[float]) -> float:
    """Return the power of two by which anchors have to be scaled to fit the objects; 1 if they do."""
    if _out_of_range(objects, anchors) <= OUTLIERS:
        return 1
    factors = sorted((2.0**power for power in range(-4, 4)), key=lambda factor: abs(math.log2(factor)))
    return min(factors, key=lambda factor: _out_of_range(objects, [factor * size for size in anchors]))
