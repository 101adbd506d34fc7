import csv
import json

import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn.evaluation.confusion_matrix import confusion_matrix
from d2_maskrcnn.evaluation.evaluator import precision_recall
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


class Perfect:
    """Finds what is annotated, but takes every circle for a square."""

    def __init__(self, records):
        self.records = {record["image_id"]: record for record in records}

    def __call__(self, batch):
        import torch

        answers = []
        for item in batch:
            record = self.records[item["image_id"]]
            kept = [each for each in record["annotations"] if not each.get("iscrowd", 0)]
            boxes = torch.tensor([each["bbox"] for each in kept], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            classes = torch.tensor([max(each["category_id"], 1) for each in kept], dtype=torch.int64)
            size = (record["height"], record["width"])
            found = Instances(size, pred_boxes=Boxes(boxes), scores=torch.full((len(kept),), 0.9), pred_classes=classes)
            answers.append({"instances": found})
        return answers


def test_figures_and_numbers(trainer_of, tmp_path):
    from detectron2.data import DatasetCatalog

    trainer = trainer_of("MODEL.MASK_ON", False)  # Perfect gives boxes
    name = trainer.cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)
    evaluator = trainer.build_evaluator(trainer.cfg, name, str(tmp_path / "eval"))
    loader = trainer.build_test_loader(trainer.cfg, name)
    with EventStorage() as storage:
        results = inference_on_dataset(Perfect(records), loader, evaluator)
        drawn = {key: image.shape for key, image, _ in storage._vis_data}
    assert results["bbox"]["AP-triangle"] == pytest.approx(100)
    for figure in ("confusion_matrix", "precision_recall_bbox", "class_ap"):
        with Image.open(tmp_path / "eval" / "figures" / f"{figure}.png") as image:
            assert image.size[::-1] == drawn[f"eval/{figure}"][1:]

    classes = [each["category_id"] for r in records for each in r["annotations"] if not each.get("iscrowd", 0)]
    rows = list(csv.reader((tmp_path / "eval" / "figures" / "confusion_matrix.csv").read_text().splitlines()))
    assert rows[0][1:] == ["circle", "square", "triangle", "star", "(nothing)"]
    counts = np.array([row[1:] for row in rows[1:]], dtype=int)
    expected = np.zeros((5, 5), dtype=int)
    for kind in classes:
        expected[kind, max(kind, 1)] += 1
    assert counts.tolist() == expected.tolist()


def test_curve_areas_are_the_ap_at_50(trainer_of, tmp_path):
    """The mean of the curves is COCO's own AP50, and figures can be switched off."""
    trainer = trainer_of("MODEL.MASK_ON", False, "D2_MASKRCNN.EVALUATION.FIGURES", False)
    from detectron2.data import DatasetCatalog, MetadataCatalog

    name = trainer.cfg.DATASETS.TEST[0]
    evaluator = trainer.build_evaluator(trainer.cfg, name, str(tmp_path / "eval"))
    model = Perfect(DatasetCatalog.get(name))
    results = inference_on_dataset(model, trainer.build_test_loader(trainer.cfg, name), evaluator)
    assert not (tmp_path / "eval" / "figures").exists()
    with open(MetadataCatalog.get(name).json_file) as file:
        truth = json.load(file)
    detections = json.loads((tmp_path / "eval" / "coco_instances_results.json").read_text())
    recalls, curves = precision_recall(truth, detections, "bbox")
    assert recalls.shape == (101,) and all(curve.shape == (101,) for curve in curves.values())
    assert 100 * np.mean([curve.mean() for curve in curves.values()]) == pytest.approx(results["bbox"]["AP50"])
    assert 0 < curves["square"].mean() < 1 and curves["triangle"].mean() == pytest.approx(1)
    assert precision_recall(truth, [], "bbox")[1] == {}
    assert confusion_matrix(truth, []).sum() == sum(not each.get("iscrowd", 0) for each in truth["annotations"])


def test_figures_of_several_evaluations_have_names_of_their_own():
    from pathlib import Path

    from d2_maskrcnn.evaluation.evaluator import _tag

    assert _tag(Path("/inference_x/out/inference")) == "inference"
    assert _tag(Path("out/inference_ema/balloon")) == "inference_ema/balloon"
    assert _tag(Path("somewhere/eval")) == "eval"


def test_without_any_detection_both_tasks_have_results(trainer_of, tmp_path):
    import torch

    trainer = trainer_of()
    name = trainer.cfg.DATASETS.TEST[0]

    def nothing(batch):
        size = (batch[0]["height"], batch[0]["width"])
        found = Instances(size, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        found.pred_classes, found.pred_masks = torch.zeros(0).long(), torch.zeros(0, *size).bool()
        return [{"instances": found} for _ in batch]

    evaluator = trainer.build_evaluator(trainer.cfg, name, str(tmp_path / "eval"))
    results = inference_on_dataset(nothing, trainer.build_test_loader(trainer.cfg, name), evaluator)
    assert set(results) == {"bbox", "segm"} and {"AP", "AP50"} <= set(results["segm"])
    assert {path.stem for path in (tmp_path / "eval" / "figures").glob("*.png")} >= {"precision_recall_segm"}
