import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn import compat
from d2_maskrcnn.evaluation.evaluator import MaskRCNNEvaluator, write_results
from d2_maskrcnn.evaluation.prediction_images import draw_test_sets
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage


class GroundTruthModel:
    """Returns the ground truth boxes, with every circle (class 0) as a square (class 1)."""

    def __init__(self, records):
        self.records = {record["image_id"]: record for record in records}

    def __call__(self, batch):
        return [{"instances": self.predict(self.records[item["image_id"]])} for item in batch]

    def predict(self, record):
        objects = [each for each in record["annotations"] if not each.get("iscrowd", 0)]
        boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = torch.tensor([max(each["category_id"], 1) for each in objects], dtype=torch.int64)
        scores = torch.full((len(objects),), 0.9)
        return Instances(
            (record["height"], record["width"]), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
        )


def evaluate(trainer, model, folder):
    name = trainer.cfg.DATASETS.TEST[0]
    evaluator = trainer.build_evaluator(trainer.cfg, name, str(folder))
    return inference_on_dataset(model, trainer.build_test_loader(trainer.cfg, name), evaluator)


FIGURES = ["D2_MASKRCNN.EVALUATION.FIGURES", True]


def test_figures_and_metrics(trainer_of, tmp_path):
    trainer = trainer_of(*FIGURES, "MODEL.MASK_ON", False)  # the model returns boxes only
    records, folder = (
        DatasetCatalog.get(trainer.cfg.DATASETS.TEST[0]),
        tmp_path / "inference_old" / "inference_ema" / "x",
    )
    with EventStorage() as storage:
        results = evaluate(trainer, GroundTruthModel(records), folder)
        logged = {key: image.shape for key, image, _ in compat.pending_images(storage)}
    assert results["bbox"]["AP-triangle"] == pytest.approx(100)
    for figure in ("confusion_matrix", "precision_recall_bbox", "class_ap"):
        with Image.open(folder / "figures" / f"{figure}.png") as image:
            assert image.size[::-1] == logged[f"inference_ema/x/{figure}"][1:]

    classes = [each["category_id"] for r in records for each in r["annotations"] if not each.get("iscrowd", 0)]
    rows = list(csv.reader((folder / "figures" / "confusion_matrix.csv").read_text().splitlines()))
    assert rows[0][1:] == ["circle", "square", "triangle", "star", "(background)"]
    expected = np.zeros((5, 5), dtype=int)
    for index in classes:
        expected[index, max(index, 1)] += 1
    assert np.array([row[1:] for row in rows[1:]], dtype=int).tolist() == expected.tolist()


def test_figures_can_be_switched_off(trainer_of, tmp_path):
    trainer = trainer_of("MODEL.MASK_ON", False, "D2_MASKRCNN.EVALUATION.FIGURES", False)
    model = GroundTruthModel(DatasetCatalog.get(trainer.cfg.DATASETS.TEST[0]))
    assert "AP" in evaluate(trainer, model, tmp_path / "eval")["bbox"]
    assert not (tmp_path / "eval" / "figures").exists()


def test_a_figure_that_cannot_be_written_is_a_warning(trainer_of, tmp_path, caplog):
    trainer = trainer_of(*FIGURES, "MODEL.MASK_ON", False)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "figures").write_text("not a folder")
    model = GroundTruthModel(DatasetCatalog.get(trainer.cfg.DATASETS.TEST[0]))
    assert evaluate(trainer, model, tmp_path / "eval")["bbox"]["AP"] > 0
    assert "Drawing the figures of the evaluation failed" in caplog.text


def test_both_tasks_have_results_without_any_detection(trainer_of, tmp_path):
    trainer = trainer_of(*FIGURES)

    def detect_nothing(batch):
        size = (batch[0]["height"], batch[0]["width"])
        instances = Instances(size, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        instances.pred_classes, instances.pred_masks = torch.zeros(0).long(), torch.zeros(0, *size).bool()
        return [{"instances": instances} for _ in batch]

    results = evaluate(trainer, detect_nothing, tmp_path / "eval")
    assert set(results) == {"bbox", "segm"} and {"AP", "AP50"} <= set(results["segm"])
    assert {path.stem for path in (tmp_path / "eval" / "figures").glob("*")} >= {
        "precision_recall_segm",
        "confusion_matrix",
    }
    rows = list(csv.reader((tmp_path / "eval" / "figures" / "confusion_matrix.csv").read_text().splitlines()))
    counts = np.array([row[1:] for row in rows[1:]], dtype=int)
    assert counts[:, :-1].sum() == 0 < counts[:, -1].sum()


def test_dataset_is_loaded_once_for_all_evaluations(trainer_of):
    trainer = trainer_of("D2_MASKRCNN.EVALUATION.FIGURES", False)
    name, loads = trainer.cfg.DATASETS.TEST[0], []
    load = DatasetCatalog[name]
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: loads.append(name) or load())
    assert "validation" in trainer.evaluate()
    draw_test_sets(trainer.cfg, trainer.model)
    assert loads == [name]


SIDE, STEP = 640, 40


@pytest.fixture
def crowded(tmp_path, request):
    """``crowded(annotations=...)``: a dataset of one image with 256 objects of one class, and their detections."""

    def make(**content):
        places = [(x, y) for y in range(5, SIDE, STEP) for x in range(5, SIDE, STEP)]
        objects = [
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "area": 625.0,
                "bbox": [x, y, 25, 25],
                "segmentation": [[x, y, x + 25, y, x + 25, y + 25, x, y + 25]],
            }
            for number, (x, y) in enumerate(places, start=1)
        ]
        image = {"id": 1, "file_name": "1.png", "width": SIDE, "height": SIDE}
        data = {
            "images": [image],
            "categories": [{"id": 1, "name": "price_$5_to_$10"}],
            "annotations": objects,
            **content,
        }
        data = {key: value for key, value in data.items() if value is not None}
        name, file = f"crowded_{request.node.name}", tmp_path / "crowded.json"
        file.write_text(json.dumps(data))
        register_coco_instances(name, {}, str(file), str(tmp_path))
        request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
        (record,) = DatasetCatalog.get(name)
        instances = Instances((SIDE, SIDE))
        corners = torch.tensor(places, dtype=torch.float32)
        instances.pred_boxes = Boxes(torch.cat([corners, corners + 25], dim=1))
        instances.scores, instances.pred_classes = torch.linspace(0.99, 0.5, 256), torch.zeros(256, dtype=torch.int64)
        instances.pred_masks = torch.zeros(256, SIDE, SIDE, dtype=torch.bool)
        for mask, (x, y) in zip(instances.pred_masks, places, strict=True):
            mask[y : y + 25, x : x + 25] = True
        return name, record, instances

    return make


def run(evaluator, record, instances):
    evaluator.reset()
    evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    ("per_image", "limit", "expected"), [(300, 300, 100.0), (50, 100, 39.6), (200, 200, 78.2), (-1, 1_000_000, 100.0)]
)
def test_more_than_100_detections_count(crowded, tmp_path, caplog, per_image, limit, expected):
    caplog.set_level("INFO")
    name, record, instances = crowded()
    evaluator = MaskRCNNEvaluator(name, str(tmp_path / "out"), detections_per_image=per_image)
    results = run(evaluator, record, instances)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(expected, abs=0.1)
        assert f"COCO metrics of {task}: the {limit} highest-scoring detections of each image and class" in caplog.text
    assert {path.name for path in (tmp_path / "out" / "figures").glob("*.png")} == {
        "confusion_matrix.png", "precision_recall_bbox.png", "precision_recall_segm.png",
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_ground_truth_in_any_encoding_with_ids_from_zero(crowded, tmp_path, encoding):
    name, record, instances = crowded()
    file = tmp_path / "crowded.json"
    data = json.loads(file.read_text())
    for number, annotation in enumerate(data["annotations"]):
        annotation["id"] = number % 2  # COCO's tools would take 0 for "no match"
        del annotation["iscrowd"], annotation["area"]
    file.write_text(json.dumps(data, ensure_ascii=False), encoding=encoding)
    results = run(MaskRCNNEvaluator(name, str(tmp_path / "out"), detections_per_image=300), record, instances)
    assert [results[task]["APs"] for task in ("bbox", "segm")] == pytest.approx([100, 100])


def test_dataset_that_was_registered_in_python_is_converted_anew(tmp_path, request):
    name, box = request.node.name, [2.0, 2.0, 12.0, 12.0]
    annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    record = {"file_name": "x.png", "image_id": 5, "height": 20, "width": 20, "annotations": [annotation]}
    DatasetCatalog.register(name, lambda: [record])
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    (tmp_path / f"{name}_coco_format.json").write_text("an older file")
    instances = Instances((20, 20), pred_boxes=Boxes(torch.tensor([box])), scores=torch.ones(1))
    instances.pred_classes = torch.zeros(1, dtype=torch.int64)
    results = run(MaskRCNNEvaluator(name, str(tmp_path), ("bbox",)), record, instances)
    assert results["bbox"]["AP"] == results["bbox"]["AP-a"] == pytest.approx(100)


@pytest.mark.parametrize("annotations", [None, []])
def test_dataset_without_annotations_has_detections_and_no_metrics(crowded, tmp_path, annotations):
    name, record, instances = crowded(annotations=annotations)
    assert run(MaskRCNNEvaluator(name, str(tmp_path / "out")), record, instances) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 256
    assert not (tmp_path / "out" / "figures").exists()


def test_results_file_has_null_for_undefined_numbers(tmp_path):
    results = {"bbox": {"AP": np.float64(12.5), "AP-a/ü": float("nan")}, "tta": {"segm": {"AP": float("-inf")}}, "n": 1}
    write_results(results, tmp_path / "inference" / "results.json")
    assert json.loads((tmp_path / "inference" / "results.json").read_text(encoding="utf-8")) == {
        "bbox": {"AP": 12.5, "AP-a/ü": None}, "tta": {"segm": {"AP": None}}, "n": 1,
    }  # fmt: skip
