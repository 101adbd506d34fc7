"""Statistics of the synthetic dataset, compared with its JSON."""

import json

import numpy as np
import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.inspection.data import augmented_scenes, draw_augmented, draw_data, inspect_data, shape_iou


def test_statistics(cfg, tiny_shapes):
    findings = inspect_data(cfg, cfg.DATASETS.TRAIN[0])
    data = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    objects = [a for a in data["annotations"] if not a.get("iscrowd", 0)]
    assert findings.images == len(data["images"]) == 12
    assert findings.objects == len(objects) and findings.crowds == len(data["annotations"]) - len(objects)
    names = {c["id"]: c["name"] for c in data["categories"]}
    for number, name in names.items():
        assert findings.categories[name] == sum(a["category_id"] == number for a in objects)
    areas = sorted(np.sqrt(a["bbox"][2] * a["bbox"][3]) for a in objects)
    np.testing.assert_allclose(np.sort(findings.sqrt_areas), areas, rtol=1e-6)
    assert findings.image_sizes == {"64x64": 12}
    assert sum(anchor["boxes"] for anchor in findings.anchors) == findings.objects and len(findings.anchors) == 15
    assert 0 <= findings.covered <= 1


def test_shape_iou():
    assert shape_iou(np.zeros((0, 2)), np.ones((3, 2))).shape == (0, 3)
    np.testing.assert_allclose(shape_iou(np.array([[4.0, 2.0]]), np.array([[2.0, 4.0], [4.0, 2.0]])), [[4 / 12, 1]])


def test_augmented_images_are_what_training_gets(cfg):
    state = np.random.get_state()[1].copy()
    scenes = augmented_scenes(cfg, cfg.DATASETS.TRAIN[0], count=3)
    assert [scene.frame for scene in scenes] == [(64, 64)] * 3
    assert all([layer.name for layer in scene.layers] == ["masks", "boxes"] for scene in scenes)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_figures(cfg):
    assert len(draw_data(inspect_data(cfg, cfg.DATASETS.TRAIN[0])).axes) == 4
    assert len(draw_augmented(cfg, cfg.DATASETS.TRAIN[0], 2)) == 2


def test_an_unknown_dataset(cfg):
    with pytest.raises(UserError, match="nowhere"):
        inspect_data(cfg, "nowhere")
