import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, BoxMode, Instances

MAIN = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
SIZE = 20
ANNOTATION = {
    "id": 1,
    "image_id": 1,
    "category_id": 7,
    "bbox": [2, 2, 10, 10],
    "area": 100,
    "iscrowd": 0,
    "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]],
}


def ground_truth(*annotations):
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in (1, 2)]
    categories = [{"id": 3, "name": "x"}, {"id": 7, "name": "y"}]
    return {"info": {}, "images": images, "annotations": list(annotations), "categories": categories}


@pytest.fixture
def register(tmp_path):
    names = []

    def add(content):
        names.append(f"evaluated_{len(names)}")
        path = tmp_path / f"{names[-1]}.json"
        path.write_text(json.dumps(content))
        register_coco_instances(names[-1], {}, str(path), str(tmp_path))
        DatasetCatalog.get(names[-1])  # reads the categories
        return names[-1]

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def found(number, masks=True, category=1):
    instances = Instances((SIZE, SIZE))
    instances.pred_boxes = Boxes(torch.tensor([[2.0, 2.0, 12.0, 12.0]] * number).reshape(-1, 4))
    instances.scores = torch.full((number,), 0.5)
    instances.pred_classes = torch.full((number,), category)
    if masks:
        instances.pred_masks = torch.zeros(number, SIZE, SIZE, dtype=torch.bool)
        instances.pred_masks[:, 2:12, 2:12] = True
    return instances


def run(evaluator, *images):
    evaluator.reset()
    for image_id, instances in images:
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def test_nothing_came_in(register):
    assert run(COCOEvaluator(register(ground_truth(ANNOTATION)))) == {}


def test_results_have_the_form_of_detectron2(register, tmp_path):
    evaluator = COCOEvaluator(register(ground_truth(ANNOTATION)), output_dir=str(tmp_path / "out"))
    results = run(evaluator, (1, found(1)), (2, found(0)))
    assert list(results) == ["bbox", "segm"]
    for task in results.values():
        assert list(task) == [*MAIN, "AP-x", "AP-y"]
        assert [task[name] for name in ("AP", "AP50", "AP75", "APs", "AP-y")] == pytest.approx([100] * 5)
        assert all(math.isnan(task[name]) for name in ("APm", "APl", "AP-x"))
    saved = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [(d["image_id"], d["category_id"], d["bbox"]) for d in saved] == [(1, 7, [2.0, 2.0, 10.0, 10.0])]
    assert mask_util.area(saved[0]["segmentation"]) == 100
    assert str(evaluator.evaluate()) == str(results)  # it may be asked again; as text, NaN equals NaN
    assert run(evaluator) == {}  # reset forgets


@pytest.mark.parametrize(
    ("annotations", "instances", "tasks"),
    [
        ([ANNOTATION], found(0), ["bbox"]),
        ([], found(2), ["bbox", "segm"]),
        ([{**ANNOTATION, "iscrowd": 1}], found(1), ["bbox", "segm"]),
    ],
)
def test_what_is_not_defined_is_nan(register, annotations, instances, tasks):
    results = run(COCOEvaluator(register(ground_truth(*annotations))), (1, instances))
    assert list(results) == tasks
    assert all(math.isnan(value) for task in results.values() for value in task.values())


def test_without_annotations_only_the_detections_are_written(register, tmp_path):
    content = ground_truth()
    name = register(content)
    del content["annotations"]
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert run(COCOEvaluator(name, output_dir=str(tmp_path / "out")), (1, found(1))) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 1


def mask_cfg(mask_on):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = mask_on
    return cfg


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (None, ["bbox", "segm"]),
        (("bbox",), ["bbox"]),
        (("segm",), ["segm"]),
        (mask_cfg(False), ["bbox"]),
        (mask_cfg(True), ["bbox", "segm"]),
    ],
)
def test_tasks(register, tasks, expected):
    results = run(COCOEvaluator(register(ground_truth(ANNOTATION)), tasks, False), (1, found(1)))
    assert list(results) == expected


def test_boxes_alone_and_a_task_without_predictions(register):
    name = register(ground_truth(ANNOTATION))
    assert list(run(COCOEvaluator(name), (1, found(1, masks=False)))) == ["bbox"]
    results = run(COCOEvaluator(name, ("bbox", "segm")), (1, found(1, masks=False)))
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert math.isnan(results["segm"]["AP"])


def test_bad_input_is_named(register):
    name = register(ground_truth(ANNOTATION))
    with pytest.raises(ValueError, match="keypoints"):
        COCOEvaluator(name, ("keypoints",))
    with pytest.raises(ValueError, match=r"class 2.*NUM_CLASSES"):
        run(COCOEvaluator(name), (1, found(1, category=2)))
    with pytest.raises(ValueError, match="55"):
        run(COCOEvaluator(name), (55, found(1)))


def test_a_part_of_the_images(register):
    second = {**ANNOTATION, "id": 2, "image_id": 2}
    evaluator = COCOEvaluator(register(ground_truth(ANNOTATION, second)))
    assert run(evaluator, (1, found(1)), (2, found(0)))["bbox"]["AP"] == pytest.approx(50.495, abs=0.01)
    assert evaluator.evaluate(img_ids=[1])["bbox"]["AP"] == pytest.approx(100)
    assert evaluator.evaluate(img_ids=[2])["bbox"]["AP"] == 0


def test_limit_of_detections(register):
    name = register(ground_truth(ANNOTATION))
    instances = Instances.cat([found(1), found(1)])
    instances.pred_boxes.tensor[0] += 8  # the better score is at the wrong place
    instances.scores[0] = 0.9
    assert run(COCOEvaluator(name, ("bbox",), max_dets_per_image=1), (1, instances))["bbox"]["AP"] == 0
    assert run(COCOEvaluator(name, ("bbox",), max_dets_per_image=2), (1, instances))["bbox"]["AP"] == pytest.approx(50)


def test_a_dataset_without_json_is_converted(tmp_path):
    record = {"file_name": "1.png", "image_id": 1, "height": SIZE, "width": SIZE}
    annotation = {"bbox": [2, 2, 12, 12], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0}
    annotation["segmentation"] = ANNOTATION["segmentation"]
    DatasetCatalog.register("evaluated_plain", lambda: [{**record, "annotations": [annotation]}])
    MetadataCatalog.get("evaluated_plain").set(thing_classes=["x", "y"])
    try:
        with pytest.raises(ValueError, match=r"evaluated_plain.*output_dir"):
            COCOEvaluator("evaluated_plain")
        results = run(COCOEvaluator("evaluated_plain", output_dir=str(tmp_path)), (1, found(1)))
        assert results["segm"]["AP-y"] == pytest.approx(100)
        assert (tmp_path / "evaluated_plain_coco_format.json").is_file()
    finally:
        DatasetCatalog.remove("evaluated_plain")
        MetadataCatalog.remove("evaluated_plain")


def test_no_dense_mask_is_kept(register):
    evaluator = COCOEvaluator(register(ground_truth(ANNOTATION)))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found(5)}])
    kept = json.dumps(evaluator._predictions)  # tensors and arrays would not go into JSON
    assert len(kept) < 5 * 200


@pytest.mark.parametrize("number", [0, 1, 3])
def test_instances_in_the_form_of_coco(number):
    instances = found(number)
    detections = instances_to_coco_json(instances, 42)
    assert len(detections) == number
    for detection in detections:
        assert detection["image_id"] == 42
        assert detection["category_id"] == 1
        assert detection["bbox"] == [2.0, 2.0, 10.0, 10.0]
        assert detection["score"] == 0.5
        np.testing.assert_array_equal(mask_util.decode(detection["segmentation"]), instances.pred_masks[0].numpy())
    json.dumps(detections)


def test_masks_may_come_encoded():
    instances = found(2, masks=False)
    mask = np.asfortranarray(np.eye(SIZE, dtype=np.uint8))
    instances.pred_masks_rle = [mask_util.encode(mask)] * 2
    detections = instances_to_coco_json(instances, 1)
    assert all(mask_util.area(d["segmentation"]) == SIZE for d in detections)
    json.dumps(detections)


class WithACount(COCOEvaluator):
    """Replace what Detectron2's users replace: the device's attribute is read, and a metric is added."""

    def _eval_predictions(self, predictions, img_ids=None):
        super()._eval_predictions(predictions, img_ids)
        assert self._cpu_device == torch.device("cpu")
        self._results["count"] = {"detections": sum(len(p["instances"]) for p in predictions)}


def test_subclasses_add_metrics(register):
    results = run(WithACount(register(ground_truth(ANNOTATION)), ("bbox",)), (1, found(2)), (2, found(1)))
    assert list(results) == ["bbox", "count"] and results["count"] == {"detections": 3}
