"""Annotated images compared with reference images that were checked by eye.

To accept a deliberate change, run python -m tests.visualization.test_golden_images and look at the files it writes.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest

import d2_maskrcnn  # noqa: F401
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks
from d2_maskrcnn.visualization import Annotator

FOLDER = Path(__file__).parent / "data"
SIZES = {"small": (180, 320), "large": (720, 1280)}
NAMES = ["person", "car", "traffic light"]
# XYXY in parts of the image: in the middle, over one another, at all four edges, beyond them, and tiny.
BOXES = [
    (0.30, 0.30, 0.55, 0.80),
    (0.45, 0.25, 0.70, 0.60),
    (0.00, 0.00, 0.15, 0.20),
    (0.85, 0.75, 1.00, 1.00),
    (0.80, 0.00, 1.05, 0.15),
    (-0.05, 0.60, 0.12, 0.95),
    (0.62, 0.70, 0.64, 0.74),
]


def scene(size: tuple[int, int]) -> Detections:
    """Lobed shapes, one with a hole."""
    height, width = size
    boxes = np.array(BOXES, np.float32) * (width, height, width, height)
    y, x = np.mgrid[:28, :28] - 13.5
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    shapes = np.stack([1 / (1 + np.exp(2 * (distance - 11 - 2 * np.sin(angle * (2 + i))))) for i in range(len(boxes))])
    shapes[0][distance < 4] = 0
    count = len(boxes)
    return Detections(
        boxes,
        np.linspace(0.99, 0.5, count).astype(np.float32),
        np.arange(count) % len(NAMES),
        size,
        BoxMasks(boxes, shapes.astype(np.float32), size),
        np.arange(count) + 1,
    )


def drawn(name: str, labels: bool) -> np.ndarray:
    height, width = SIZES[name]
    ramp = np.linspace(60, 190, width).astype(np.uint8)
    image = np.repeat(np.tile(ramp, (height, 1))[:, :, None], 3, axis=2)
    image = np.ascontiguousarray(image)
    Annotator(NAMES, labels=labels).draw(image, scene((height, width)))
    return image


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("labels", [False, True], ids=["shapes", "labels"])
def test_equals_the_reference_image(name, labels):
    """Versions of OpenCV and FreeType differ by a few pixels along edges and letters, not more."""
    kept = cv2.imread(str(FOLDER / f"{name}_{'labels' if labels else 'shapes'}.png"))
    difference = np.abs(drawn(name, labels).astype(int) - kept).max(axis=2)
    assert (difference > 24).mean() < (0.01 if labels else 0.002)
    assert difference.mean() < 1


if __name__ == "__main__":
    for shown in SIZES:
        for with_labels in (False, True):
            cv2.imwrite(str(FOLDER / f"{shown}_{'labels' if with_labels else 'shapes'}.png"), drawn(shown, with_labels))
