"""The evaluator of datasets in COCO's format, or convertible to it."""

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from faster_coco_eval import COCOeval_faster
from faster_coco_eval import COCOeval_faster as COCOeval_opt
from tabulate import tabulate

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation.coco_ap import load_ground_truth, run_coco_eval
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

__all__ = ["COCOEvaluator", "COCOeval_opt", "instances_to_coco_json"]

logger = logging.getLogger(__name__)

_TASKS = ("bbox", "segm")
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six of COCO's twelve numbers

Detection = dict[str, Any]


class COCOEvaluator(DatasetEvaluator):
    """Compute COCO's average precision of boxes and masks.

    Masks are stored run-length encoded, so that memory does not grow with the size of the images.

    Args:
        dataset_name: a registered dataset. Its metadata has ``json_file`` in COCO's format; otherwise the dataset is
            first written to ``output_dir`` in that format.
        tasks: any of ``"bbox"``, ``"segm"``; None for those that there are predictions for. A config means boxes, and
            masks if ``MODEL.MASK_ON``.
        distributed: whether the predictions of all processes are gathered and evaluated in the main one; False
            evaluates those of this process.
        output_dir: gets ``coco_instances_results.json`` (the dataset's category ids) and ``instances_predictions.pth``
            (per image, the model's class numbers); None writes nothing.
        max_dets_per_image: number of highest-scoring detections per image and class; None for COCO's 100.
        use_fast_impl: for programs written for Detectron2, whose two implementations give the same numbers; this engine
            has the fast one only.
        kpt_oks_sigmas: for programs written for Detectron2; keypoints are not evaluated.
        allow_cached_coco: whether a converted dataset in ``output_dir`` from an earlier run is used.

    Raises:
        ValueError: a task is unknown, or a dataset must be converted and ``output_dir`` is missing.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        if isinstance(tasks, CfgNode):
            tasks = _TASKS if tasks.MODEL.MASK_ON else _TASKS[:1]
        if tasks is not None and not set(tasks) <= set(_TASKS):
            raise ValueError(f"tasks {tuple(tasks)}: expected some of {_TASKS}")
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = max_dets_per_image
        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            self._metadata.json_file = self._convert_dataset(dataset_name, allow_cached_coco)
        self._coco_api = load_ground_truth(PathManager.get_local_path(self._metadata.json_file))
        self._do_evaluation = "annotations" in self._coco_api.dataset  # subclasses may change it
        self._predictions: list[dict[str, Any]] = []
        self._results: dict[str, Any] = {}
        # For subclasses written for Detectron2.
        self._logger, self._cpu_device = logger, torch.device("cpu")
        self._use_fast_impl, self._kpt_oks_sigmas = use_fast_impl, kpt_oks_sigmas

    def _convert_dataset(self, dataset_name: str, allow_cached: bool) -> str:
        if self._output_dir is None:
            raise ValueError(f"dataset {dataset_name!r} has no COCO JSON: COCOEvaluator needs output_dir to write one")
        path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        logger.info("Writing %r in COCO's format to %s for the evaluation", dataset_name, path)
        convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)
        return path

    def reset(self) -> None:
        """Remove all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Store the predictions of a batch.

        Args:
            inputs: each with ``"image_id"``.
            outputs: each with ``"instances"``, in the frame of the original image.
        """
        for record, output in zip(inputs, outputs, strict=True):
            prediction = {"image_id": record["image_id"]}
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                prediction["instances"] = instances_to_coco_json(instances, record["image_id"])
            self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Evaluate the stored predictions.

        Args:
            img_ids: the images to evaluate; None for all of the dataset.

        Returns:
            ``{"bbox": {"AP": ..., "AP50": ..., "AP75": ..., "APs": ..., "APm": ..., "APl": ..., "AP-<class>": ...},
            "segm": ...}`` in percent, NaN for undefined numbers. Empty in other processes than the main one, and
            without predictions.

        Raises:
            ValueError: the class or image of a prediction is not in the dataset.
        """
        predictions = self._gather()
        if predictions is None:
            return {}
        if not predictions:
            logger.warning("COCOEvaluator: no image was evaluated")
            return {}
        self._results = OrderedDict()
        self._eval_predictions(predictions, img_ids)
        return dict(self._results)

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Fill ``_results`` by task; subclasses override it, under Detectron2's name, for metrics of their own."""
        detections = [found for prediction in predictions for found in prediction.get("instances", [])]
        detections = self._with_dataset_ids(detections)
        self._save(predictions, detections)
        if not self._do_evaluation:
            logger.info("Dataset %s has no annotations to evaluate against", self._metadata.name)
            return
        for task in sorted(self._tasks or self._tasks_from_predictions(detections)):
            self._results[task] = self._evaluate_task(task, detections, img_ids)

    def _tasks_from_predictions(self, predictions: Sequence[Detection]) -> set[str]:
        return {"bbox"} | {"segm" for detection in predictions if "segmentation" in detection}

    def _gather(self) -> list[dict[str, Any]] | None:
        """Return the predictions of all processes; None in those that do not evaluate."""
        if not self._distributed:
            return self._predictions
        comm.synchronize()
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        return [prediction for predictions in gathered for prediction in predictions]

    def _with_dataset_ids(self, detections: list[Detection]) -> list[Detection]:
        """Replace the model's class numbers by the dataset's category ids."""
        to_contiguous = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if to_contiguous is None:
            return detections
        to_dataset = {contiguous: dataset_id for dataset_id, contiguous in to_contiguous.items()}
        for category in {detection["category_id"] for detection in detections}:
            if category not in to_dataset:
                raise ValueError(
                    f"a prediction has class {category}, but dataset {self._metadata.name!r} has {len(to_dataset)} "
                    "classes; check MODEL.ROI_HEADS.NUM_CLASSES"
                )
        return [{**detection, "category_id": to_dataset[detection["category_id"]]} for detection in detections]

    def _save(self, predictions: list[dict[str, Any]], detections: list[Detection]) -> None:
        if not self._output_dir:
            return
        PathManager.mkdirs(self._output_dir)
        with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as file:
            torch.save(predictions, file)
        path = os.path.join(self._output_dir, "coco_instances_results.json")
        logger.info("Writing %d detections to %s", len(detections), path)
        with PathManager.open(path, "w") as file:
            json.dump(detections, file)

    def _evaluate_task(
        self, task: str, detections: Sequence[Detection], img_ids: Sequence[int] | None
    ) -> dict[str, float]:
        key = "segmentation" if task == "segm" else "bbox"
        detections = [detection for detection in detections if key in detection]
        evaluation = None
        if detections:
            evaluation = run_coco_eval(self._coco_api, detections, task, img_ids, self._max_dets_per_image)
        return self._derive_coco_results(evaluation, task, class_names=self._metadata.get("thing_classes"))

    def _derive_coco_results(
        self, coco_eval: COCOeval_faster | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Turn a finished evaluation into results; subclasses override it, under Detectron2's name, to see them.

        Args:
            coco_eval: accumulated and summarized; None if there are no detections.
            iou_type: ``"bbox"`` or ``"segm"``.
            class_names: if there are several, the results contain the AP of each.
        """
        if coco_eval is None:
            logger.warning("There are no predictions of the task %s", iou_type)
            return dict.fromkeys(_METRICS, math.nan)
        results = {metric: _percent(value) for metric, value in zip(_METRICS, coco_eval.stats, strict=False)}
        limit = coco_eval.params.maxDets[-1]
        logger.info("Results of %s, up to %d detections per image:\n%s", iou_type, limit, create_small_table(results))
        if any(math.isnan(value) for value in results.values()):
            logger.info("NaN: not defined, since the dataset has no such objects")
        per_class = self._per_class_ap(coco_eval, class_names)
        if per_class:
            logger.info("AP of %s by class:\n%s", iou_type, _table(per_class))
        return {**results, **{f"AP-{name}": value for name, value in per_class.items()}}

    def _per_class_ap(self, evaluation: COCOeval_faster, names: Sequence[str] | None) -> dict[str, float]:
        """Return the AP of each class by name; nothing for a dataset with one class."""
        if names is None or len(names) <= 1:
            return {}
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        categories = list(evaluation.params.catIds)
        contiguous = [to_contiguous.get(i, -1) if to_contiguous else position for position, i in enumerate(categories)]
        precision = evaluation.eval["precision"]  # (IoUs, recalls, classes, areas, limits), -1 where undefined
        result = {}
        for index, name in enumerate(names):
            of_class = precision[:, :, contiguous.index(index), 0, -1] if index in contiguous else np.empty(0)
            of_class = of_class[of_class > -1]
            result[name] = float(of_class.mean() * 100) if of_class.size else math.nan
        return result


def _percent(value: float) -> float:
    return float(value * 100) if value >= 0 else math.nan


def _table(values: Mapping[str, float], columns: int = 3) -> str:
    """Format ``values`` as a table with several name-value columns side by side."""
    cells = [cell for item in values.items() for cell in item]
    width = min(2 * columns, len(cells))
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    return tabulate(rows, tablefmt="pipe", floatfmt=".3f", headers=["category", "AP"] * (width // 2), numalign="left")


def instances_to_coco_json(instances: Instances, img_id: int) -> list[Detection]:
    """Convert the detections of one image to COCO's results format.

    Args:
        instances: on the CPU, with ``pred_boxes``, ``scores``, ``pred_classes`` and possibly ``pred_masks`` (N, H, W)
            bool, or ``pred_masks_rle``, a list of N run-length encodings.
        img_id: the image's id in the dataset.

    Returns:
        One dict per instance: ``image_id``, ``category_id`` (the model's class number), ``bbox`` (left, top, width,
        height), ``score`` and, with masks, ``segmentation`` as a compressed run-length encoding.
    """
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    detections: list[Detection] = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(classes, boxes, scores, strict=True)
    ]
    rles = _encoded_masks(instances)
    for detection, rle in zip(detections, rles or [], strict=False):
        detection["segmentation"] = rle
    return detections


def _encoded_masks(instances: Instances) -> list[dict[str, Any]] | None:
    if instances.has("pred_masks_rle"):
        rles = instances.pred_masks_rle
    elif instances.has("pred_masks"):
        # One by one: transposing all masks at once would double the memory.
        rles = [mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8)) for mask in instances.pred_masks]
    else:
        return None
    return [{**rle, "counts": _text(rle["counts"])} for rle in rles]


def _text(counts: bytes | str) -> str:
    """Convert compressed run lengths, which are ASCII, to text for JSON."""
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


__getattr__ = lookup(__name__)
