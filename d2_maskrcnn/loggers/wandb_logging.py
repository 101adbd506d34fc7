"""What a training sends to Weights & Biases: numbers by an event writer, images and files by a hook."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.distributed import unwrap
from d2_maskrcnn.engine.hooks.best_checkpoint import BEST_NAME, BestCheckpoint
from d2_maskrcnn.engine.hooks.ema import SUFFIX
from d2_maskrcnn.evaluation.validation_loss import evaluation_is_due
from d2_maskrcnn.loggers.wandb_files import lost_numbers
from d2_maskrcnn.loggers.wandb_images import find_objects, references, wandb_images
from d2_maskrcnn.loggers.wandb_session import WandbSession
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

BINS = 64  # of histograms


class WandbWriter(EventWriter):
    """Sends what the event storage holds. It belongs in front of TensorBoard's writer, which clears the images."""

    def __init__(self, session: WandbSession, window_size: int = 20) -> None:
        self.session, self.window_size = session, window_size
        self._last_write = -1

    def write(self) -> None:
        """Sends the numbers and images since the last time, in the order of their iterations."""
        if self.session.run is None:
            return
        storage = get_event_storage()
        steps: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self.window_size).items():
            if iteration > self._last_write:
                steps[iteration][name] = value
        for name, image, iteration in storage._vis_data:
            steps[iteration][name] = image
        for iteration, values in sorted(steps.items()):
            self.session.log(values, iteration, complete=True, as_media=self._as_media)
        self._last_write = max(steps, default=self._last_write)

    def _as_media(self, values: dict[str, Any]) -> dict[str, Any]:
        """Images (3, H, W) as W&B's."""
        return {
            name: value
            if np.ndim(value) == 0
            else self.session.wandb.Image(np.ascontiguousarray(np.asarray(value).transpose(1, 2, 0)))
            for name, value in values.items()
        }

    def close(self) -> None:
        """Finishes the run."""
        self.session.finish()


class WandbResults(HookBase):
    """Starts the run; sends histograms of what is watched, after each evaluation a table of classes and images, and
    at the end the best checkpoint.
    """

    trainer: Any

    def __init__(self, session: WandbSession) -> None:
        self.session = session

    def before_train(self) -> None:
        """Starts the run, or goes on with it: first with the numbers that a kill has kept it from writing down."""
        self.session.start(resumed=self.trainer.resumed)
        if self.session.run is not None and self.trainer.resumed:
            metrics, start = Path(self.trainer.cfg.OUTPUT_DIR) / "metrics.json", self.trainer.start_iter
            for step, values in lost_numbers(metrics, self.session.given_before, start).items():
                self.session.log(values, step, complete=True)

    def after_step(self) -> None:
        """Sends histograms if it is time, and what the evaluation of this iteration gave, if there was one."""
        node = self.session.node
        if self.session.run is None:
            return
        if node.WATCH and (self.trainer.iter + 1) % node.WATCH_PERIOD == 0:
            tensors = watched_tensors(unwrap(self.trainer.model), node.WATCH)
            self.session.log(tensors, self.trainer.iter, as_media=self._as_histograms)
        if self.trainer.cfg.DATASETS.TEST and evaluation_is_due(self.trainer):
            self._send_evaluation()

    def _send_evaluation(self) -> None:
        step, cfg, node = self.trainer.iter, self.trainer.cfg, self.session.node
        self.session.log(class_tables(cfg, self.trainer._last_eval_results or {}), step, as_media=self._as_tables)
        if node.NUM_IMAGES and step > self.session.given_before:
            self._send_images(find_objects(cfg, self.trainer.model, node.NUM_IMAGES), step)
        best = self._best()
        if self.session.node.LOG_MODEL == "all" and best is not None and best.best_iter == step:
            self._send_best(best)

    def _best(self) -> BestCheckpoint | None:
        return next((hook for hook in self.trainer._hooks if isinstance(hook, BestCheckpoint)), None)

    def _send_best(self, best: BestCheckpoint) -> None:
        folder = Path(self.trainer.cfg.OUTPUT_DIR)
        paths = [folder / f"{BEST_NAME}.pth", *([folder / f"{BEST_NAME}{SUFFIX}.pth"] if self.trainer.average else [])]
        self.session.log_model(paths, {"metric": best.metric, "value": best.best, "iteration": best.best_iter})

    def after_train(self) -> None:
        """Sends the best checkpoint, whether the training came to its end or not."""
        self.session.exit_code = 130 if self.trainer.stop_requested else 0
        best = self._best()
        if self.session.node.LOG_MODEL == "end" and best is not None and best.best is not None:
            self._send_best(best)

    def _send_images(self, found: list[Any], step: int) -> None:
        images: dict[str, Any] = {}

        def as_media(_values: dict[str, Any]) -> dict[str, Any]:
            images.update(wandb_images(self.trainer.cfg.DATASETS.TEST[0], found, self.session.sent))
            # One panel for each: images in a list would have to be of one size.
            keys = [f"predictions/{name}" for name in unique_names(images)]
            return dict(zip(keys, images.values(), strict=True))

        if self.session.log({"predictions": found}, step, as_media=as_media):
            self.session.note_sent(references(images), step)

    def _as_tables(self, values: dict[str, list[list[Any]]]) -> dict[str, Any]:
        table = self.session.wandb.Table
        return {name: table(columns=["class", "bbox AP", "segm AP"], data=rows) for name, rows in values.items()}

    def _as_histograms(self, values: dict[str, torch.Tensor]) -> dict[str, Any]:
        kind = self.session.wandb.Histogram
        return {name: kind(np_histogram=histogram(tensor)) for name, tensor in values.items()}


def watched_tensors(model: nn.Module, what: str) -> dict[str, torch.Tensor]:
    """What is ``WATCH``ed of the weights that learn: their values, their last gradients, or both (``all``).

    W&B's own ``watch`` would do it from inside of the forward pass, in evaluations as well.
    """
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = {f"parameters/{name}": weight.detach() for name, weight in learning.items()}
    gradients = {f"gradients/{name}": weight.grad for name, weight in learning.items() if weight.grad is not None}
    return {**(parameters if what != "gradients" else {}), **(gradients if what != "parameters" else {})}


def histogram(tensor: torch.Tensor) -> tuple[list[float], list[float]]:
    """Counts in ``BINS`` bins of the values that are finite, and the BINS + 1 edges."""
    values = tensor.detach().float().flatten()
    values = values[values.isfinite()]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    return torch.histc(values, bins=BINS, min=low, max=high).tolist(), edges.tolist()


def unique_names(files: Iterable[str]) -> list[str]:
    """The files' names without their folders, or with the last of them where names come twice."""
    paths = [Path(file) for file in files]
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in paths]


def class_tables(cfg: CfgNode, results: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """Of the first evaluation results that ``Trainer.test`` gives, for each test set rows [class, box AP, mask AP].

    Returns:
        ``classes``, or ``classes/<dataset>`` where there are several.
    """
    names = list(cfg.DATASETS.TEST)
    if len(names) == 1:
        results = {names[0]: results}
    tables = {
        name: class_rows(MetadataCatalog.get(name).get("thing_classes") or [], results.get(name, {})) for name in names
    }
    return {"classes" if len(names) == 1 else f"classes/{name}": rows for name, rows in tables.items() if rows}


def class_rows(classes: list[str], results: dict[str, Any]) -> list[list[Any]]:
    """[class, box AP, mask AP] in percent, None where there is no number; a single class has the AP of all."""
    if not results:
        return []
    keys = {name: f"AP-{name}" if len(classes) > 1 else "AP" for name in classes}
    return [[name, *(results.get(task, {}).get(key) for task in ("bbox", "segm"))] for name, key in keys.items()]
