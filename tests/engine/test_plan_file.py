import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from d2_maskrcnn import UserError, load_config
from d2_maskrcnn.engine.plan_file import TrainingOptions, write_plan


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("proposal_generator.rpn_head.conv.weight", 0.002 / 4),
        ("backbone.bottom_up.stem.conv1.weight", 0.002),  # such as those trained on ImageNet
    ],
)
def test_weights_of_a_detector_are_fine_tuned_with_a_lower_rate(tiny_shapes, tmp_path, name, rate):
    weights, path = tmp_path / "weights.pth", tmp_path / "plan.yaml"
    torch.save({"model": {name: torch.zeros(1)}}, weights)
    options = TrainingOptions(tiny_shapes, config="quickstart", weights=str(weights), batch_size=8)
    write_plan(options, path)
    assert yaml.safe_load(path.read_text())["SOLVER"]["BASE_LR"] == pytest.approx(rate)


@pytest.fixture
def boxes(tmp_path):
    """A JSON of four images with one box each, without masks and validation data."""
    entry = {"image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
    for number in range(4):
        Image.fromarray(np.full((32, 40, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 32} for n in range(4)]
    annotations = [{**entry, "id": n + 1, "image_id": n} for n in range(4)]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}))
    return path


def test_boxes_without_masks_are_planned_if_the_model_has_none(boxes, tmp_path):
    options = {"config": "quickstart", "weights": "scratch"}
    with pytest.raises(UserError, match=r"set MODEL\.MASK_ON to False"):
        write_plan(TrainingOptions(boxes, **options), tmp_path / "out" / "plan.yaml")
    write_plan(TrainingOptions(boxes, **options, overrides=["MODEL.MASK_ON", "False"]), tmp_path / "out" / "plan.yaml")
    assert load_config(str(tmp_path / "out" / "plan.yaml")).MODEL.MASK_ON is False


def test_errors_name_the_file_that_was_split(boxes, tmp_path):
    part = re.escape(str(tmp_path / "out" / "data" / "train.json"))
    with pytest.raises(UserError, match=rf"^{re.escape(str(boxes))}: 3 annotations without .* \(in its part {part}\)$"):
        write_plan(TrainingOptions(boxes, config="quickstart", weights="scratch"), tmp_path / "out" / "plan.yaml")
