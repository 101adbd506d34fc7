"""Masks that are pasted when they are read behave like masks that were there all along."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from d2_maskrcnn import engine_info
from d2_maskrcnn.modeling.postprocessing import postprocess
from d2_maskrcnn.structures.mask_instances import MaskInstances
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

BOXES = torch.tensor([[1.0, 2, 11, 12], [5, 5, 25, 15], [0, 0, 3, 3]])


@pytest.fixture
def found() -> MaskInstances:
    raw = Instances((20, 30), pred_boxes=Boxes(BOXES), scores=torch.tensor([0.9, 0.8, 0.7]))
    raw.pred_masks = torch.rand((3, 1, 28, 28), generator=torch.Generator().manual_seed(0)) * 0.2 + 0.5
    return postprocess(raw, 40, 60)


def test_without_masks():
    plain = postprocess(Instances((20, 30), pred_boxes=Boxes(torch.zeros(0, 4))), 40, 60)
    assert not plain.has("pred_masks")


def test_empty():
    raw = Instances((20, 30), pred_boxes=Boxes(torch.zeros(0, 4)), pred_masks=torch.zeros(0, 1, 28, 28))
    assert postprocess(raw, 40, 60).pred_masks.shape == (0, 40, 60)


def test_masks_are_made_when_they_are_read(found):
    assert found.has("pred_masks") and "pred_masks" not in found._fields
    assert found.pred_masks.shape == (3, 40, 60) and found.pred_masks.dtype == torch.bool
    assert found.pred_masks is found.pred_masks
    assert found.pred_masks[1].any()


def test_run_lengths_need_no_images(found):
    rles = found.pred_masks_rle
    assert "pred_masks" not in found._fields
    assert (mask_util.decode(rles).transpose(2, 0, 1).astype(bool) == found.pred_masks.numpy()).all()
    assert (np.stack(list(found.box_masks)) == found.pred_masks.numpy()).all()


@pytest.mark.parametrize(
    "item",
    [0, -1, slice(0, 0), slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])],
    ids=["first", "last", "none", "slice", "index", "bool"],
)
def test_picks(found, item):
    picked = found[item]
    assert "pred_masks" not in picked._fields
    expected = found.pred_masks[item]
    assert (picked.pred_masks == expected.reshape(-1, 40, 60)).all()
    assert len(picked) == len(picked.pred_masks)


def test_moving_copying_pickling(found):
    for other in (found.to("cpu"), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert "pred_masks" not in other._fields
        assert (other.pred_masks == found.pred_masks).all()


def test_the_evaluator_needs_no_images(found):
    if engine_info().name != "embedded":
        pytest.skip("Detectron2's own evaluator takes whole masks")
    found.pred_classes = torch.zeros(3, dtype=torch.int64)
    results = instances_to_coco_json(found.to("cpu"), 1)
    assert "pred_masks" not in found._fields
    assert [r["segmentation"] for r in results] == found.pred_masks_rle


def test_fields_and_joining(found):
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_masks"}
    assert len(Instances.cat([found, found]).pred_masks) == 6


def test_setting_and_removing(found):
    found.pred_masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    assert not found.pred_masks.any() and found.box_masks is None and not found.has("pred_masks_rle")
    found.remove("pred_masks")
    assert not found.has("pred_masks")
    with pytest.raises(AttributeError):
        _ = found.pred_masks


def test_removing_what_was_never_made(found):
    found.remove("pred_masks")
    assert not found.has("pred_masks") and found.has("scores")
