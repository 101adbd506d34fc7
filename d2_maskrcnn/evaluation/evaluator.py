"""COCO's measure with figures of where a model errs."""

import csv
import io
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from d2_maskrcnn.evaluation.confusion_matrix import confusion_matrix
from d2_maskrcnn.visualization.figures import draw_class_ap, draw_confusion, draw_curves, save_figure
from d2_maskrcnn.weights.atomic import atomic_write_text
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"  # what COCOEvaluator writes


class FigureEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` that also leaves figures in ``output_dir/figures`` and in the event storage.

    Masks are kept run-length encoded, in each process and when they are gathered.

    Args:
        dataset_name: a registered dataset.
        output_dir: where detections and figures go.
        tasks: ``bbox``, ``segm``; None: those that detections are for.
        confusion_iou, confusion_score: least overlap and score of the confusion matrix, in [0, 1].
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        tasks: Sequence[str] | None = None,
        *,
        confusion_iou: float,
        confusion_score: float,
    ) -> None:
        super().__init__(dataset_name, tasks, output_dir=output_dir)
        self.dataset_name, self.folder = dataset_name, Path(output_dir)
        self.confusion_iou, self.confusion_score = confusion_iou, confusion_score

    def evaluate(self, img_ids: Any = None) -> dict[str, Any]:
        """What ``COCOEvaluator.evaluate`` gives; the main process draws."""
        results = super().evaluate(img_ids)
        if results and comm.is_main_process():
            self._draw(results)
        return results

    def _draw(self, results: dict[str, Any]) -> None:
        truth = json.loads(Path(MetadataCatalog.get(self.dataset_name).json_file).read_text())
        detections = json.loads((self.folder / RESULTS_FILE).read_text())
        names = [category["name"] for category in sorted(truth["categories"], key=lambda category: category["id"])]
        matrix = confusion_matrix(truth, detections, self.confusion_iou, self.confusion_score)
        _write_csv(self.folder / "figures" / "confusion_matrix.csv", matrix, names)
        title = f"Confusion matrix, IoU {self.confusion_iou:g}, score {self.confusion_score:g}"
        figures = {"confusion_matrix": draw_confusion(matrix, names, title)}
        for task in results:
            recalls, curves = precision_recall(truth, detections, task)
            figures[f"precision_recall_{task}"] = draw_curves(recalls, curves, f"Precision and recall, {task}, IoU 0.5")
        by_class = {
            task: {key[3:]: value for key, value in of_task.items() if key.startswith("AP-")}
            for task, of_task in results.items()
        }
        if any(by_class.values()):
            figures["class_ap"] = draw_class_ap(by_class)
        for name, figure in figures.items():
            pixels = save_figure(figure, self.folder / "figures" / f"{name}.png")
            if has_event_storage():
                get_event_storage().put_image(f"{_tag(self.folder)}/{name}", pixels)
        logger.info("Figures are in %s", self.folder / "figures")


def _tag(folder: Path) -> str:
    """``OUTPUT_DIR/inference_ema/<dataset>`` -> ``inference_ema/<dataset>``."""
    starts = [number for number, part in enumerate(folder.parts) if part.startswith("inference")]
    return "/".join(folder.parts[starts[-1] :]) if starts else folder.name


def precision_recall(
    truth: dict[str, Any], detections: list[dict[str, Any]], task: str, iou: float = 0.5
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """COCO's interpolated precision at 101 recalls, for objects of all sizes and up to 100 detections of an image.

    Args:
        truth: the content of a COCO JSON; left as it is. detections: in COCO's results format. task: ``bbox`` or
            ``segm``. iou: one of COCO's thresholds 0.5, 0.55, ..., 0.95.

    Returns:
        recalls (101,), and for each class with annotations its precisions (101,), whose mean is its AP at that IoU.
    """
    keys = ("image_id", "category_id", "score", "segmentation" if task == "segm" else "bbox")
    usable = [{key: item[key] for key in keys} for item in detections if all(key in item for key in keys)]
    recalls = np.linspace(0.0, 1.0, 101)
    if not usable:
        return recalls, {}
    index = COCO(json.loads(json.dumps(truth)))
    evaluation = COCOeval_faster(index, index.loadRes(usable), task, print_function=lambda *_: None)
    evaluation.params.iouThrs = np.array([iou])
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # (recalls, classes), -1 without annotations
    names = [category["name"] for category in index.loadCats(evaluation.params.catIds)]
    curves = OrderedDict((name, precision[:, i]) for i, name in enumerate(names) if (precision[:, i] >= 0).all())
    return recalls, dict(curves)


def _write_csv(path: Path, matrix: np.ndarray, names: list[str]) -> None:
    labels = [*names, "(nothing)"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["annotated as / detected as", *labels])
    writer.writerows([[label, *row] for label, row in zip(labels, matrix.tolist(), strict=True)])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text.getvalue())
