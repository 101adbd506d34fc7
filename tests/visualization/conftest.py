import numpy as np
import pytest

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks


@pytest.fixture
def make_detections():
    """Detections whose masks fill their boxes: ``make_detections(boxes, (H, W), track_ids=None)``."""

    def make(boxes, image_size, track_ids=None, scores=None, classes=None, probabilities=None) -> Detections:
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        count = len(boxes)
        masks = np.ones((count, 28, 28), np.float32) if probabilities is None else probabilities
        return Detections(
            boxes,
            np.full(count, 0.9, np.float32) if scores is None else np.array(scores, np.float32),
            np.zeros(count, np.int64) if classes is None else np.array(classes),
            image_size,
            BoxMasks(boxes, masks, image_size),
            None if track_ids is None else np.array(track_ids),
        )

    return make
