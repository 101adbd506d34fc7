"""Convert results of a training to the media types of Weights & Biases: histograms, tables, images with overlays."""

from typing import Any

import numpy as np
from torch import nn

from d2_maskrcnn.data.image_reading import read_display
from d2_maskrcnn.distributed import unwrap
from d2_maskrcnn.errors import warn_on_failure
from d2_maskrcnn.evaluation.outcomes import compare
from d2_maskrcnn.evaluation.prediction_images import first_records, predict_record, unique_names
from d2_maskrcnn.structures.detections import Detections
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

BINS = 64  # of histograms
MAX_MASK_VALUE = 127  # W&B stores masks as signed bytes


def histograms(wandb: Any, model: nn.Module, watch: str) -> dict[str, Any]:
    """Make histograms of the trainable parameters, of their gradients, or of both (``watch`` is ``all``).

    ``wandb.watch`` would record them in each forward pass, those of evaluations included. Values that are not finite
    are left out.
    """
    tensors = {}
    for name, parameter in unwrap(model).named_parameters():
        if parameter.requires_grad and watch != "gradients":
            tensors[f"parameters/{name}"] = parameter.detach()
        if parameter.grad is not None and watch != "parameters":
            tensors[f"gradients/{name}"] = parameter.grad
    finite = {name: tensor[tensor.isfinite()].double().cpu().numpy() for name, tensor in tensors.items()}
    return {name: wandb.Histogram(np_histogram=np.histogram(values, bins=BINS)) for name, values in finite.items()}


def class_tables(cfg: CfgNode, results: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """Make rows [class, box AP, mask AP] in percent, with None for unknown values.

    Args:
        cfg: names the test sets.
        results: of ``Trainer.test``: by task, or by dataset and task if there are several test sets.

    Returns:
        ``{"classes": rows}``; ``{"classes/<dataset>": rows}`` with several test sets.
    """
    names = list(cfg.DATASETS.TEST)
    by_dataset = {names[0]: results} if len(names) == 1 else results
    tables = {}
    for name in names:
        metrics = by_dataset.get(name)
        classes = MetadataCatalog.get(name).get("thing_classes") or []
        if metrics and classes:
            key = "AP-{}" if len(classes) > 1 else "AP"  # evaluators report no AP by class for a single class
            tables["classes" if len(names) == 1 else f"classes/{name}"] = [
                [label, *(metrics.get(task, {}).get(key.format(label)) for task in ("bbox", "segm"))]
                for label in classes
            ]
    return tables


def prediction_images(wandb: Any, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Make a ``wandb.Image`` of each of the first images of the first test set.

    Returns:
        ``{"predictions/<image>": image}``. Each image has the groups ``ground_truth`` and ``predictions``, both as
        boxes and masks that can be switched on and off in W&B.
    """
    node, dataset_name = cfg.D2_MASKRCNN.WANDB, cfg.DATASETS.TEST[0]
    records = first_records(dataset_name, node.NUM_IMAGES)
    labels = dict(enumerate(MetadataCatalog.get(dataset_name).get("thing_classes") or []))  # known once they are loaded
    samples = {}
    for record, name in zip(records, unique_names([record["file_name"] for record in records]), strict=True):
        with warn_on_failure(f"Predicting on {record['file_name']}"):
            samples[name] = (record["file_name"], *predict_record(cfg, model, record, node.SCORE_THRESHOLD))
    return {f"predictions/{name}": _image(wandb, cfg.INPUT.FORMAT, *sample, labels) for name, sample in samples.items()}


def _image(
    wandb: Any,
    image_format: str,
    file_name: str,
    ground_truth: Detections,
    predictions: Detections,
    labels: dict[int, str],
) -> Any:
    outcomes, unmatched = compare(ground_truth, predictions)
    gt_tags = ["FN" if index in unmatched else "" for index in range(len(ground_truth))]
    tags = ["" if outcome == "TP" else outcome for outcome, _ in outcomes]
    overlays = {"ground_truth": (ground_truth, gt_tags), "predictions": (predictions, tags)}
    return wandb.Image(
        read_display(file_name, image_format),
        caption=file_name,
        boxes={group: _boxes(*overlay, labels) for group, overlay in overlays.items()},
        masks={group: _masks(detections, labels) for group, (detections, _) in overlays.items()},
    )


def _boxes(detections: Detections, tags: list[str], labels: dict[int, str]) -> dict[str, Any]:
    """Convert boxes to the form of ``wandb.Image``; a score of NaN is left out, and captions begin with the tags."""
    data = []
    for box, index, score, tag in zip(
        detections.boxes.tolist(), detections.classes.tolist(), detections.scores.tolist(), tags, strict=True
    ):
        label, known = f"{tag} {labels.get(index, str(index))}".strip(), np.isfinite(score)
        data.append(
            {
                "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
                "domain": "pixel",
                "class_id": index,
                "box_caption": f"{label} {score:.2f}" if known else label,
                **({"scores": {"score": score}} if known else {}),
            }
        )
    return {"box_data": data, "class_labels": labels}


def _masks(detections: Detections, labels: dict[int, str]) -> dict[str, Any]:
    """Convert masks to one label map (H, W), in which detections with higher scores cover those with lower ones."""
    label_map = np.zeros(detections.image_size, dtype=np.uint8)
    values = mask_values(detections.classes.tolist(), labels)
    for index in np.argsort(detections.scores, kind="stable").tolist():
        if detections.masks is None:
            break
        window, pixels = detections.masks.crop(index)
        label_map[window.slices][pixels.astype(bool)] = values[int(detections.classes[index])]
    return {"mask_data": label_map, "class_labels": {value: labels.get(i, str(i)) for i, value in values.items()}}


def mask_values(classes: list[int], labels: dict[int, str]) -> dict[int, int]:
    """Choose the value of each class in a label map, where 0 is the background.

    It is class + 1, or a number within this image if the dataset has more classes than a label map has values.
    """
    known = {*labels, *classes}
    if max(known, default=0) < MAX_MASK_VALUE:
        return {index: index + 1 for index in known}
    return {index: min(value, MAX_MASK_VALUE) for value, index in enumerate(sorted(set(classes)), start=1)}
