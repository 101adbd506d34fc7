"""Average precision against the published numbers, and against pycocotools on synthetic data."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.evaluation.coco_ap import load_ground_truth, run_coco_eval


def evaluate(ground_truth, detections, iou_type):
    """The twelve numbers."""
    return run_coco_eval(load_ground_truth(ground_truth), detections, iou_type).stats[:12]


# val2014_fake_eval_res.txt
PUBLISHED = {
    "segm": [0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381],
    "bbox": [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564],
}


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_the_twelve_published_numbers(shared_dir, iou_type):
    folder = shared_dir / "data" / "coco_eval_ref"
    detections = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    stats = evaluate(folder / "instances_val2014_100.json", detections, iou_type)
    assert [f"{value:.3f}" for value in stats] == [f"{value:.3f}" for value in PUBLISHED[iou_type]]


def ellipse(height, width, center_x, center_y, radius_x, radius_y):
    y, x = np.mgrid[:height, :width]
    return ((x - center_x) / radius_x) ** 2 + ((y - center_y) / radius_y) ** 2 <= 1


def encode(mask):
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def draw(num_images=12, seed=0):
    """Ellipses of all sizes, some of them crowds, and detections that are a little off or of the wrong class."""
    random = np.random.RandomState(seed)
    height, width = 200, 260
    images, annotations, detections = [], [], []
    for image_id in range(1, num_images + 1):
        images.append({"id": image_id, "width": width, "height": height})
        for _ in range(random.randint(0, 6)):
            shape = np.array([*random.uniform(20, 180, 2), *random.uniform(5, 70, 2)])
            rle = encode(ellipse(height, width, *shape))
            category = int(random.choice([3, 5, 9]))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category,
                "segmentation": rle,
            }
            annotation["bbox"] = mask_util.toBbox(rle).tolist()
            annotation |= {"area": float(mask_util.area(rle)), "iscrowd": int(random.rand() < 0.15)}
            annotations.append(annotation)
            for _ in range(random.randint(0, 3)):
                found = encode(ellipse(height, width, *(shape + random.normal(0, 3, 4))))
                detection = {"image_id": image_id, "category_id": category, "segmentation": found}
                detection |= {"bbox": mask_util.toBbox(found).tolist(), "score": float(random.rand())}
                if random.rand() < 0.2:
                    detection["category_id"] = int(random.choice([3, 5, 9]))
                detections.append(detection)
    categories = [{"id": i, "name": f"class {i}"} for i in (3, 5, 9)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def with_pycocotools(ground_truth, detections, iou_type, max_dets=100, img_ids=None):
    api = COCO()
    api.dataset = json.loads(json.dumps(ground_truth))
    api.createIndex()
    keys = {"image_id", "category_id", "score", "bbox" if iou_type == "bbox" else "segmentation"}
    results = api.loadRes([{key: d[key] for key in keys} for d in detections])
    evaluation = COCOeval(api, results, iou_type)
    if img_ids:
        evaluation.params.imgIds = img_ids
    evaluation.params.maxDets = [1, min(10, max_dets), max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    if max_dets == 100:
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_same_numbers_as_pycocotools(iou_type, seed, tmp_path):
    ground_truth, detections = draw(seed=seed)
    expected = with_pycocotools(ground_truth, detections, iou_type).stats
    assert 0.05 < expected[0] < 0.95
    np.testing.assert_allclose(evaluate(ground_truth, detections, iou_type), expected, rtol=0, atol=1e-12)

    gt_file = tmp_path / "gt.json"
    gt_file.write_text(json.dumps(ground_truth))
    np.testing.assert_array_equal(evaluate(gt_file, detections, iou_type), evaluate(ground_truth, detections, iou_type))


@pytest.mark.parametrize("settings", [{"max_dets_per_image": 2}, {"img_ids": [1, 2, 3, 4, 5]}])
def test_precision_with_fewer_detections_or_images(settings):
    ground_truth, detections = draw()
    if "img_ids" in settings:
        expected = with_pycocotools(ground_truth, detections, "bbox", img_ids=settings["img_ids"])
    else:
        expected = with_pycocotools(ground_truth, detections, "bbox", max_dets=2)
    actual = run_coco_eval(load_ground_truth(ground_truth), detections, "bbox", **settings)
    np.testing.assert_allclose(actual.eval["precision"][..., -1], expected.eval["precision"][..., -1], atol=1e-12)
    everything = run_coco_eval(load_ground_truth(ground_truth), detections, "bbox")
    assert actual.stats[0] != everything.stats[0]


def test_inputs_stay_as_they_are():
    ground_truth, detections = draw(4)
    before = json.dumps([ground_truth, detections])
    evaluate(ground_truth, detections, "segm")
    assert json.dumps([ground_truth, detections]) == before


def one_object(**changes):
    image = {"id": 1, "width": 20, "height": 20}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "area": 100.0, "iscrowd": 0}
    annotation = {key: value for key, value in {**annotation, **changes}.items() if value is not None}
    return {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}


FOUND = {"image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "score": 0.5}


@pytest.mark.parametrize(
    ("ground_truth", "detections", "ap"),
    [
        (one_object(), [], 0.0),
        ({**one_object(), "annotations": []}, [FOUND], -1.0),
        (one_object(), [FOUND], 1.0),
        (one_object(id=0), [FOUND], 1.0),  # COCO's tools read a match with id 0 as no match
        (one_object(iscrowd=None, area=None), [FOUND], 1.0),
        (one_object(iscrowd=1), [FOUND], -1.0),
    ],
)
def test_corner_cases(ground_truth, detections, ap):
    assert evaluate(ground_truth, detections, "bbox")[0] == pytest.approx(ap)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_numbers_do_not_depend_on_the_sign_of_ids(iou_type):
    ground_truth, detections = draw()
    expected = evaluate(ground_truth, detections, iou_type)
    for entry in [*ground_truth["images"], *ground_truth["annotations"]]:
        entry["id"] = 5 - entry["id"]
    for entry in [*ground_truth["annotations"], *detections]:
        entry["image_id"] = 5 - entry["image_id"]
    np.testing.assert_allclose(evaluate(ground_truth, detections, iou_type), expected)
    some = run_coco_eval(load_ground_truth(ground_truth), detections, iou_type, img_ids=[-1, -2]).stats
    kept = [image for image in ground_truth["images"] if image["id"] in (-1, -2)]
    inside = [entry for entry in ground_truth["annotations"] if entry["image_id"] in (-1, -2)]
    alone = {**ground_truth, "images": kept, "annotations": inside}
    found = [entry for entry in detections if entry["image_id"] in (-1, -2)]
    np.testing.assert_allclose(some[:12], evaluate(alone, found, iou_type))


def test_a_missing_area_is_that_of_the_mask():
    mask = [[2, 2, 12, 2, 2, 12]]
    assert load_ground_truth(one_object(area=None, segmentation=mask)).anns[1]["area"] == pytest.approx(50, abs=8)
    assert load_ground_truth(one_object(area=None)).anns[1]["area"] == 100


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="keypoints"):
        evaluate(one_object(), [FOUND], "keypoints")
    with pytest.raises(ValueError, match="77"):
        evaluate(one_object(), [{**FOUND, "image_id": 77}], "bbox")
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        evaluate(tmp_path / "no.json", [], "bbox")
