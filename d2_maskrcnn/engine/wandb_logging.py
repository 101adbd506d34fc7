"""What a training sends to Weights & Biases: numbers by an event writer, pictures and files by a hook."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.engine.best import BEST_NAME, BestCheckpoint
from d2_maskrcnn.engine.predictions import annotated, detected
from d2_maskrcnn.engine.validation import evaluation_is_due
from d2_maskrcnn.engine.wandb_session import WandbSession
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.utils.events import EventWriter, get_event_storage


class WandbWriter(EventWriter):
    """Sends what the event storage holds. It belongs in front of TensorBoard's writer, which clears the pictures."""

    def __init__(self, session: WandbSession, window_size: int = 20) -> None:
        self.session, self.window_size = session, window_size
        self._last_write = -1

    def write(self) -> None:
        """Sends the numbers and pictures since the last time, in the order of their iterations."""
        if self.session.run is None:
            return
        storage = get_event_storage()
        steps: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self.window_size).items():
            if iteration > self._last_write:
                steps[iteration][name] = value
        for name, picture, iteration in storage._vis_data:
            steps[iteration][name] = self.session.wandb.Image(_channels_last(picture))
        for iteration, values in sorted(steps.items()):
            self.session.log(values, iteration, complete=True)
        self._last_write = max(steps, default=self._last_write)

    def close(self) -> None:
        """Finishes the run."""
        self.session.finish()


def _channels_last(picture: Any) -> np.ndarray:
    """(3, H, W) -> (H, W, 3)."""
    return np.ascontiguousarray(np.asarray(picture).transpose(1, 2, 0))


class WandbResults(HookBase):
    """Starts the run; after each evaluation sends a table of classes and pictures; at the end the best checkpoint."""

    trainer: Any

    def __init__(self, session: WandbSession) -> None:
        self.session = session
        self._annotations_sent = False

    def before_train(self) -> None:
        """Starts the run, or goes on with it."""
        self.session.start(resumed=self.trainer.resumed)
        self.session.watch(self.trainer.model)

    def after_step(self) -> None:
        """Sends what the evaluation of this iteration gave, if there was one."""
        step = self.trainer.iter
        if self.session.run is None or not evaluation_is_due(self.trainer):
            return
        wandb, values = self.session.wandb, {}
        rows = class_rows(self.trainer._last_eval_results or {})
        if rows:
            values["classes"] = wandb.Table(columns=["class", "bbox AP", "segm AP"], data=rows)
        count = self.session.node.NUM_PICTURES
        if count > 0 and self.trainer.cfg.DATASETS.TEST:
            send = not self._annotations_sent and step > self.session.given_before
            pictures = wandb_pictures(wandb, self.trainer.cfg, self.trainer.model, count, annotations=send)
            values.update(pictures)
            self._annotations_sent = True
        self.session.log(values, step)
        best = self._best()
        if self.session.node.LOG_MODEL == "all" and best is not None and best.best_iter == step:
            self._send_best(best)

    def _best(self) -> BestCheckpoint | None:
        return next((hook for hook in self.trainer._hooks if isinstance(hook, BestCheckpoint)), None)

    def _send_best(self, best: BestCheckpoint) -> None:
        path = Path(self.trainer.cfg.OUTPUT_DIR) / f"{BEST_NAME}.pth"
        self.session.log_model(path, {"metric": best.metric, "value": best.best, "iteration": best.best_iter})

    def after_train(self) -> None:
        """Sends the best checkpoint, whether the training came to its end or not."""
        self.session.exit_code = 130 if self.trainer.stop_requested else 0
        best = self._best()
        if self.session.node.LOG_MODEL == "end" and best is not None and best.best is not None:
            self._send_best(best)

    def state_dict(self) -> dict[str, Any]:
        """Whether the annotations have been sent."""
        return {"annotations_sent": self._annotations_sent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._annotations_sent = state_dict["annotations_sent"]


def class_rows(results: dict[str, Any]) -> list[list[Any]]:
    """[class, box AP, mask AP] in percent of each class, of the results of one dataset."""
    box, mask = results.get("bbox", {}), results.get("segm", {})
    names = [key.removeprefix("AP-") for key in box if key.startswith("AP-")]
    return [[name, box.get(f"AP-{name}"), mask.get(f"AP-{name}")] for name in names]


def wandb_pictures(wandb: Any, cfg: CfgNode, model: nn.Module, count: int, annotations: bool) -> dict[str, list[Any]]:
    """The first pictures of the first test set with what the model finds, as boxes and masks that can be switched.

    Args:
        annotations: give the annotated pictures too, under a name of their own.

    Returns:
        ``predictions`` and perhaps ``ground_truth``, each a list of ``wandb.Image``.
    """
    name = cfg.DATASETS.TEST[0]
    labels = dict(enumerate(MetadataCatalog.get(name).get("thing_classes") or []))
    mapper = MaskRCNNMapper(cfg, is_train=False)
    found: dict[str, list[Any]] = {"predictions": [], **({"ground_truth": []} if annotations else {})}
    with inference_context(model), torch.no_grad():
        for record in DatasetCatalog.get(name)[:count]:
            with Image.open(record["file_name"]) as file:
                picture = np.asarray(file.convert("RGB"))
            instances = model([mapper(record)])[0]["instances"].to("cpu")
            drawn = {"predictions": detected(instances, cfg.D2_MASKRCNN.WANDB.SCORE_THRESHOLD)}
            if annotations:
                drawn["ground_truth"] = annotated(record)
            for group, objects in drawn.items():
                overlay = _overlay(group, objects, labels)
                found[group].append(wandb.Image(picture, caption=Path(record["file_name"]).name, **overlay))
    return found


def _overlay(group: str, objects: tuple[Any, Any, list[int], list[float]], labels: dict[int, str]) -> dict[str, Any]:
    """Boxes and masks of one picture in W&B's form; a mask picture holds class + 1, 0 being the background."""
    boxes, masks, classes, scores = objects
    box_data = [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
            "domain": "pixel",
            "class_id": index,
            "box_caption": f"{labels.get(index, index)} {score:.2f}",
            "scores": {"score": score},
        }
        for box, index, score in zip(boxes.tolist(), classes, scores, strict=True)
    ]
    mask_data = np.zeros(tuple(masks.shape[1:]), dtype=np.uint8)
    for index in np.argsort(scores):  # the surest on top
        mask_data[masks[int(index)].numpy()] = classes[int(index)] + 1
    return {
        "boxes": {group: {"box_data": box_data, "class_labels": labels}},
        "masks": {group: {"mask_data": mask_data, "class_labels": {i + 1: label for i, label in labels.items()}}},
    }
