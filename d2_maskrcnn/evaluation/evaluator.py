"""Evaluate detections with COCO's metrics, and plot confusion matrix, curves and AP."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_maskrcnn import compat
from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.errors import warn_on_failure
from d2_maskrcnn.evaluation.confusion_matrix import confusion_matrix, write_confusion_csv
from d2_maskrcnn.evaluation.curves import precision_recall
from d2_maskrcnn.structures.masks import decode_segmentation
from d2_maskrcnn.visualization.figures import draw_class_ap, draw_confusion, draw_curves, save_figure
from d2_maskrcnn.weights.atomic import atomic_write_text
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.file_io import PathManager

COCO_LIMIT = 100  # highest-scoring detections of each image and class that count in COCO's metrics
NO_LIMIT = 1_000_000  # for models that return all detections

logger = logging.getLogger(__name__)


class MaskRCNNEvaluator(COCOEvaluator):
    """COCO's metrics of boxes and masks, for images with any number of objects, with figures.

    Differences to :class:`COCOEvaluator`: more than 100 detections per image and class count if the model returns more;
    a dataset without annotations has no metrics, its detections are written only.

    Args:
        dataset_name: a registered dataset.
        output_dir: where detections and figures are written.
        tasks: ``bbox``, ``segm``; None evaluates what the detections contain.
        detections_per_image: limit of the model, ``TEST.DETECTIONS_PER_IMAGE``; negative: none.
        figures: whether to draw into ``output_dir/figures`` and, in a training, into the event storage.
        confusion_iou, confusion_score: thresholds of the confusion matrix, see :func:`confusion_matrix`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        tasks: Sequence[str] | None = None,
        *,
        detections_per_image: int = COCO_LIMIT,
        figures: bool = True,
        confusion_iou: float = 0.5,
        confusion_score: float = 0.5,
    ) -> None:
        limit = NO_LIMIT if detections_per_image < 0 else max(COCO_LIMIT, detections_per_image)
        compat.init_coco_evaluator(
            self,
            dataset_name,
            read_ground_truth(dataset_name, output_dir),
            tasks=tasks,
            output_dir=output_dir,
            # With None, COCO's limit applies, and Detectron2 uses a faster implementation.
            max_dets_per_image=limit if limit > COCO_LIMIT else None,
        )
        self.folder, self.limit, self.figures = Path(output_dir), limit, figures
        self.confusion_iou, self.confusion_score = confusion_iou, confusion_score
        self._evaluations: dict[str, Any] = {}  # by task, while evaluate() runs

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Compute the metrics, as ``COCOEvaluator.evaluate`` does, and draw the figures in the main process."""
        results = super().evaluate(img_ids)
        if results and self.figures:
            with warn_on_failure("Computing the confusion matrix"):
                self._draw_confusion_matrix()
            with warn_on_failure("Drawing the figures of the evaluation"):
                self._draw_curves(results)
            logger.info("Figures are in %s", self.folder / "figures")
        self._evaluations = {}
        return results

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Store the evaluation of a task, from which the figures are made, and log the limit that it used."""
        logger.info(
            "COCO metrics of %s: the %d highest-scoring detections of each image and class count", iou_type, self.limit
        )
        if coco_eval is not None:
            self._evaluations[iou_type] = coco_eval
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _draw_confusion_matrix(self) -> None:
        """Match masks, or boxes if only boxes were evaluated."""
        ground_truth, detections = compat.ground_truth_of(self), []
        if self._evaluations:
            task = max(self._evaluations)
            evaluation, evaluated = self._evaluations[task], {*self._evaluations[task].params.imgIds}
            # COCO's tools add a box-shaped segmentation to detections that have only boxes.
            keys = ("image_id", "category_id", "score", "bbox", *(["segmentation"] if task == "segm" else []))
            detections = [{key: each[key] for key in keys} for each in evaluation.cocoDt.dataset["annotations"]]
            ground_truth = {**ground_truth, "images": [i for i in ground_truth["images"] if i["id"] in evaluated]}
        names = [category["name"] for category in sorted(ground_truth["categories"], key=lambda c: c["id"])]
        matrix = confusion_matrix(ground_truth, detections, self.confusion_iou, self.confusion_score)
        write_confusion_csv(self.folder / "figures" / "confusion_matrix.csv", matrix, names)
        title = f"Confusion matrix, IoU {self.confusion_iou:g}, score {self.confusion_score:g}"
        self._save_figure("confusion_matrix", draw_confusion(matrix, names, title))

    def _draw_curves(self, results: Mapping[str, Mapping[str, float]]) -> None:
        for task in results:
            recalls, precisions = precision_recall(self._evaluations.get(task))
            title = f"Precision and recall, {task}, IoU 0.5"
            self._save_figure(f"precision_recall_{task}", draw_curves(recalls, precisions, title))
        by_class = {
            task: {key.removeprefix("AP-"): value for key, value in metrics.items() if key.startswith("AP-")}
            for task, metrics in results.items()
        }
        if any(by_class.values()):
            self._save_figure("class_ap", draw_class_ap(by_class))

    def _save_figure(self, name: str, figure: Any) -> None:
        image = save_figure(figure, self.folder / "figures" / f"{name}.png")
        if has_event_storage():
            get_event_storage().put_image(f"{_tag(self.folder)}/{name}", image)


def read_ground_truth(dataset_name: str, output_dir: str) -> dict[str, Any]:
    """Read the COCO JSON of a registered dataset for an evaluation, with the reader that checks and training use.

    A dataset without a JSON file is first written to ``output_dir`` in COCO's format.

    Raises:
        UserError: the file is not COCO JSON.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("json_file"):
        path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
        convert_to_coco_json(dataset_name, path, allow_cached=False)  # an older file may be of other data
        metadata.json_file = path
    content = read_coco_json(PathManager.get_local_path(metadata.json_file), annotations_required=False)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number  # COCO's tools take 0 for "no match", and repeated ids for the same object
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            mask = decode_segmentation(annotation.get("segmentation"), *sizes[annotation["image_id"]])
            annotation["area"] = float(mask.sum() or annotation["bbox"][2] * annotation["bbox"][3])
    return content


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> MaskRCNNEvaluator:
    """Build the evaluator that a config describes.

    Args:
        cfg: ``MODEL.MASK_ON`` chooses the tasks, which also have results if there are no detections; further
            ``TEST.DETECTIONS_PER_IMAGE`` and ``D2_MASKRCNN.EVALUATION``.
        dataset_name: a registered dataset.
        output_dir: where detections and figures are written.
    """
    node = cfg.D2_MASKRCNN.EVALUATION
    return MaskRCNNEvaluator(
        dataset_name,
        output_dir,
        ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        figures=node.FIGURES,
        confusion_iou=node.CONFUSION_IOU,
        confusion_score=node.CONFUSION_SCORE,
    )


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write the nested results of an evaluation as JSON, with null for numbers that are not defined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(_as_json(results), indent=2, ensure_ascii=False) + "\n")


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    return float(value) if math.isfinite(value) else None


def _tag(folder: Path) -> str:
    """Name an evaluation: ``OUTPUT_DIR/inference_ema/<dataset>`` -> ``inference_ema/<dataset>``."""
    starts = [number for number, part in enumerate(folder.parts) if part.startswith("inference")]
    return "/".join(folder.parts[starts[-1] :]) if starts else folder.name
