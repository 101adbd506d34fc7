"""Evaluation of a model on a dataset."""

from detectron2.evaluation.coco_ap import evaluate_coco
from detectron2.evaluation.coco_evaluation import COCOEvaluator
from detectron2.evaluation.evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from detectron2.evaluation.testing import print_csv_format, verify_results

__all__ = [
    "COCOEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "evaluate_coco",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
