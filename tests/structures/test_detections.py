import numpy as np
import pytest
import torch

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks
from d2_maskrcnn.structures.mask_instances import MaskInstances
from detectron2.structures import Boxes, Instances


def make_instances(masks: BoxMasks) -> Instances:
    """Return the model's output in the network frame, with the class index equal to the position."""
    count = len(masks)
    return Instances(
        masks.image_size,
        pred_boxes=Boxes(torch.from_numpy(masks.boxes)),
        scores=torch.linspace(0, 1, count),
        pred_classes=torch.arange(count),
        pred_masks=torch.from_numpy(masks.probabilities)[:, None],
    )


def test_scaled_from_the_network_frame(random_masks):
    detections = Detections.from_instances(make_instances(random_masks), (140, 180))
    assert detections.image_size == (140, 180)
    assert detections.boxes[:, 2].max() <= 180 and detections.boxes.min() >= 0
    assert 0 < len(detections) < len(random_masks)  # those outside the image are dropped
    assert detections.masks is not None and len(detections.masks) == len(detections)
    assert len(detections[detections.scores > 0.5].masks) == (detections.scores > 0.5).sum()


def test_lazy_masks_stay_lazy(random_masks):
    instances = make_instances(random_masks)
    instances.remove("pred_masks")
    lazy = MaskInstances.from_probabilities(instances, torch.from_numpy(random_masks.probabilities))
    detections = Detections.from_instances(lazy, (140, 180))
    assert "pred_masks" not in lazy._fields
    assert (detections.masks.areas() == random_masks.resized(140, 180).areas()[detections.classes]).all()


def test_whole_image_masks(random_masks):
    instances = make_instances(random_masks)
    images = np.stack(list(random_masks))
    instances.pred_masks = torch.from_numpy(images)
    detections = Detections.from_instances(instances)
    assert (np.stack(list(detections.masks)) == images[detections.classes]).all()
    with pytest.raises(ValueError, match="cannot be scaled"):
        Detections.from_instances(instances, (5, 5))


def test_without_masks(random_masks):
    instances = make_instances(random_masks)
    instances.remove("pred_masks")
    assert Detections.from_instances(instances).masks is None


def test_empty():
    assert len(Detections.empty((70, 90))) == 0
