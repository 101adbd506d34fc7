"""Masks of instances are pasted when they are read, and not before."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from d2_maskrcnn import engine_info
from d2_maskrcnn.structures.mask_instances import MaskInstances
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

BOXES = torch.tensor([[2.0, 4, 22, 24], [10, 10, 50, 30], [0, 0, 6, 6]])


@pytest.fixture
def instances() -> MaskInstances:
    raw = Instances((40, 60), pred_boxes=Boxes(BOXES), scores=torch.tensor([0.9, 0.8, 0.7]))
    probabilities = torch.rand((3, 28, 28), generator=torch.Generator().manual_seed(0)) * 0.2 + 0.5
    return MaskInstances.from_probabilities(raw, probabilities)


def test_masks_are_made_when_they_are_read(instances):
    assert instances.has("pred_masks") and "pred_masks" not in instances._fields
    assert instances.pred_masks.shape == (3, 40, 60) and instances.pred_masks.dtype == torch.bool
    assert instances.pred_masks is instances.pred_masks
    assert instances.pred_masks[1].any()


def test_rles_need_no_images(instances):
    rles = instances.pred_masks_rle
    assert "pred_masks" not in instances._fields
    assert (mask_util.decode(rles).transpose(2, 0, 1).astype(bool) == instances.pred_masks.numpy()).all()
    assert (np.stack(list(instances.box_masks)) == instances.pred_masks.numpy()).all()


@pytest.mark.parametrize(
    "item",
    [0, -1, slice(0, 0), slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])],
    ids=["first", "last", "empty", "slice", "index", "bool"],
)
def test_indexing(instances, item):
    selected = instances[item]
    assert "pred_masks" not in selected._fields
    expected = instances.pred_masks[item]
    assert (selected.pred_masks == expected.reshape(-1, 40, 60)).all()
    assert len(selected) == len(selected.pred_masks)


def test_moving_copying_pickling(instances):
    for other in (instances.to("cpu"), copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
        assert "pred_masks" not in other._fields
        assert (other.pred_masks == instances.pred_masks).all()


def test_the_evaluator_needs_no_images(instances):
    if engine_info().name != "embedded":
        pytest.skip("Detectron2's own evaluator reads pred_masks")
    instances.pred_classes = torch.zeros(3, dtype=torch.int64)
    results = instances_to_coco_json(instances.to("cpu"), 1)
    assert "pred_masks" not in instances._fields
    assert [r["segmentation"] for r in results] == instances.pred_masks_rle


def test_fields_and_concatenation(instances):
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_masks"}
    assert len(Instances.cat([instances, instances]).pred_masks) == 6


def test_setting_and_removing(instances):
    instances.pred_masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    assert not instances.pred_masks.any() and instances.box_masks is None and not instances.has("pred_masks_rle")
    instances.remove("pred_masks")
    assert not instances.has("pred_masks")
    with pytest.raises(AttributeError):
        _ = instances.pred_masks


def test_removing_before_reading(instances):
    instances.remove("pred_masks")
    assert not instances.has("pred_masks") and instances.has("scores")
