"""Images for Weights & Biases: predictions over the annotation, both as boxes and masks that can be switched.

Image and annotation stay the same from one evaluation to the next. Their files are given to the run once; later
evaluations, those of a resumed training included, refer to them by their path in the run.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.evaluation.prediction_images import Objects, annotated, detected
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_context

Labels = dict[int, str]
MAX_MASK_VALUE = 127  # W&B writes a mask as signed bytes

# Of each image by name, what the run has of it: the JSON of W&B's records for "image", "boxes" and "masks".
Sent = Mapping[str, Mapping[str, Any]]


@torch.no_grad()
def find_objects(cfg: CfgNode, model: nn.Module, count: int) -> list[tuple[dict[str, Any], Objects]]:
    """The first records of the first test set, each with what the model finds in it."""
    mapper = MaskRCNNMapper(cfg, is_train=False)
    with inference_context(model):
        return [
            (record, detected(model([mapper(record)])[0]["instances"].to("cpu"), cfg.D2_MASKRCNN.WANDB.SCORE_THRESHOLD))
            for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:count]
        ]


def wandb_images(dataset_name: str, found: list[tuple[dict[str, Any], Objects]], sent: Sent) -> dict[str, Any]:
    """A ``wandb.Image`` for each image, by file name, with the groups ``ground_truth`` and ``predictions``.

    Args:
        dataset_name: gives the names of the classes.
        found: what :func:`find_objects` gives.
        sent: of the images that the run has already, what :func:`references` gave.
    """
    labels: Labels = dict(enumerate(MetadataCatalog.get(dataset_name).get("thing_classes") or []))
    return {record["file_name"]: _image(record, objects, labels, sent) for record, objects in found}


def references(images: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the run has of these images once they have been logged."""
    return {
        name: {
            "image": image.reference,
            "boxes": image.overlays["boxes"]["ground_truth"].reference,
            "masks": image.overlays["masks"]["ground_truth"].reference,
        }
        for name, image in images.items()
    }


def _image(record: dict[str, Any], objects: Objects, labels: Labels, sent: Sent) -> Any:
    media, name = _media(), record["file_name"]
    with Image.open(name) as file:
        pixels = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    truth_boxes, truth_mask = _overlay(annotated(record), labels)
    boxes, mask = _overlay(objects, labels)
    overlays = {
        "boxes": {"ground_truth": media.TruthBoxes(truth_boxes, "ground_truth"), "predictions": boxes},
        "masks": {"ground_truth": media.TruthMask(truth_mask, "ground_truth"), "predictions": mask},
    }
    image = media.LoggedImage(pixels, Path(name).name, overlays)
    if name in sent:
        image.reference = sent[name]["image"]
        overlays["boxes"]["ground_truth"].reference = sent[name]["boxes"]
        overlays["masks"]["ground_truth"].reference = sent[name]["masks"]
    return image


def _overlay(objects: Objects, labels: Labels) -> tuple[dict[str, Any], dict[str, Any]]:
    """Boxes and mask of one image in W&B's form."""
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
    values = _mask_values(classes, labels)
    mask_data = np.zeros(tuple(masks.shape[1:]), dtype=np.uint8)
    for index in np.argsort(scores, kind="stable"):  # the surest on top
        mask_data[masks[int(index)].numpy()] = values[classes[int(index)]]
    mask_labels = {value: labels.get(index, str(index)) for index, value in values.items()}
    return {"box_data": box_data, "class_labels": labels}, {"mask_data": mask_data, "class_labels": mask_labels}


def _mask_values(classes: Sequence[int], labels: Labels) -> dict[int, int]:
    """The value of each class in a mask, 0 being the background: class + 1, or where classes are too many for a mask,
    numbers of the classes in this image.
    """
    if max([*labels, *classes], default=0) < MAX_MASK_VALUE:
        return {index: index + 1 for index in {*labels, *classes}}
    return {index: min(number, MAX_MASK_VALUE) for number, index in enumerate(sorted(set(classes)), start=1)}


@functools.cache
def _media() -> Any:
    """W&B's classes of media, but such as give a file to the run only once. ``reference`` is the JSON by which a record
    refers to that file; None until it has been given.
    """
    import wandb  # an extra: not imported where W&B is off

    class SentOnce:
        reference: dict[str, Any] | None = None

        def bind_to_run(self, run: Any, *args: Any, **kwargs: Any) -> None:
            if self.reference is None:
                super().bind_to_run(run, *args, **kwargs)  # type: ignore[misc]
                self.reference = super().to_json(run)  # type: ignore[misc]

        def to_json(self, _run: Any) -> dict[str, Any]:
            return dict(self.reference or {})

    class TruthBoxes(SentOnce, wandb.data_types.BoundingBoxes2D):
        pass

    class TruthMask(SentOnce, wandb.data_types.ImageMask):
        pass

    class LoggedImage(wandb.Image):
        reference: dict[str, Any] | None = None

        def __init__(self, pixels: np.ndarray, caption: str, overlays: dict[str, Any]) -> None:
            super().__init__(pixels, caption=caption, boxes=overlays["boxes"], masks=overlays["masks"])
            self.overlays: dict[str, Any] = {"boxes": self._boxes, "masks": self._masks}

        def bind_to_run(self, run: Any, *args: Any, **kwargs: Any) -> None:
            if self.reference is None:
                super().bind_to_run(run, *args, **kwargs)
                own = super().to_json(run)
                self.reference = {key: value for key, value in own.items() if key not in self.overlays}
                return
            for overlay in [item for group in self.overlays.values() for item in group.values()]:
                overlay.bind_to_run(run, *args, **kwargs)

        def to_json(self, run: Any) -> dict[str, Any]:
            groups = {
                key: {name: item.to_json(run) for name, item in group.items()} for key, group in self.overlays.items()
            }
            return {**(self.reference or {}), **groups}

    return SimpleNamespace(TruthBoxes=TruthBoxes, TruthMask=TruthMask, LoggedImage=LoggedImage)
