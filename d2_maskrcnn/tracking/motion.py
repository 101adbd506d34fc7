"""Motion of boxes: a Kalman filter with constant velocity (Kalman 1960; for tracking by boxes, arXiv:1602.00763).

The four measured numbers of a box, (center x, center y, width, height), are treated as independent, so that each has
its own 2x2 covariance of (position, velocity) and all tracks are filtered by a few array operations.
"""

import numpy as np

# Standard deviations relative to the side of the box: of a measurement, of the change of velocity per frame, and of the
# velocity of a new track. Detections jitter by a few percent; objects in a 10 fps video change their speed quickly.
MEASUREMENT = 0.05
ACCELERATION = 0.03
INITIAL_VELOCITY = 0.15
# Rates at which the known size of an object approaches the size of its boxes, as shares of the difference per frame. It
# shrinks slowly, because an occlusion makes the boxes smaller as well.
GROWING, SHRINKING = 0.5, 0.05


class BoxMotion:
    """Positions and velocities of T boxes.

    Attributes:
        position: (T, 4) center x, center y, width, height in pixels.
        velocity: (T, 4), the same in pixels per frame.
    """

    def __init__(self) -> None:
        self.position = np.zeros((0, 4))
        self.velocity = np.zeros((0, 4))
        self._covariance = np.zeros((0, 4, 3))  # variance of position, covariance, variance of velocity
        self._size = np.zeros((0, 2))  # known width and height of the whole object

    def __len__(self) -> int:
        return len(self.position)

    def boxes(self) -> np.ndarray:
        """Return the boxes, (T, 4) float32 XYXY in pixels; they may leave the image."""
        half = self.position[:, 2:] / 2
        return np.concatenate((self.position[:, :2] - half, self.position[:, :2] + half), axis=1).astype(np.float32)

    def add(self, boxes: np.ndarray) -> None:
        """Add tracks without velocity at (N, 4) XYXY boxes."""
        measured = _to_centers(boxes)
        sides = _sides(measured)
        zero = np.zeros_like(sides)
        covariance = np.stack(((MEASUREMENT * sides) ** 2, zero, (INITIAL_VELOCITY * sides) ** 2), axis=2)
        self.position = np.concatenate((self.position, measured))
        self.velocity = np.concatenate((self.velocity, np.zeros_like(measured)))
        self._covariance = np.concatenate((self._covariance, covariance))
        self._size = np.concatenate((self._size, measured[:, 2:]))

    def keep(self, rows: np.ndarray) -> None:
        """Remove all tracks but those selected by ``rows`` (index or bool array)."""
        self.position, self.velocity = self.position[rows], self.velocity[rows]
        self._covariance, self._size = self._covariance[rows], self._size[rows]

    def predict(self, frames: float, lost: np.ndarray) -> None:
        """Predict all boxes some frames later.

        Args:
            frames: number of frames.
            lost: (T,) bool, tracks without a detection in the last frame. They keep moving, but their size stays, as
                the box of an object that becomes occluded shrinks quickly.
        """
        self.velocity[lost, 2:] = 0
        self.position = self.position + frames * self.velocity
        sides = _sides(self.position)
        self.position[:, 2:] = np.maximum(self.position[:, 2:], 1)
        p, c, v = np.moveaxis(self._covariance, 2, 0)
        noise = (ACCELERATION * sides) ** 2 * frames
        self._covariance = np.stack(
            (
                p + 2 * frames * c + frames**2 * v + noise * frames**2 / 3,
                c + frames * v + noise * frames / 2,
                v + noise,
            ),
            axis=2,
        )

    def correct(self, rows: np.ndarray, boxes: np.ndarray) -> None:
        """Update the tracks ``rows`` with their detected boxes, (len(rows), 4) XYXY."""
        measured = self._whole_objects(rows, _to_centers(boxes))
        p, c, v = np.moveaxis(self._covariance[rows], 2, 0)
        total = p + (MEASUREMENT * _sides(measured)) ** 2
        gain_p, gain_v = p / total, c / total
        error = measured - self.position[rows]
        self.position[rows] += gain_p * error
        self.velocity[rows] += gain_v * error
        self._covariance[rows] = np.stack(((1 - gain_p) * p, (1 - gain_p) * c, v - gain_v * c), axis=2)

    def _whole_objects(self, rows: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Estimate the boxes of whole objects from ``visible``, (N, 4) boxes of their visible parts, all by centers.

        The center of an object of known size can be anywhere within the difference of the two sizes; the estimate is
        the nearest such point to the predicted center. So an object that moves behind another one keeps its speed,
        although the center of its visible part slows down.
        """
        known, sides = self._size[rows], visible[:, 2:]
        known = known + np.where(sides > known, GROWING, SHRINKING) * (sides - known)
        self._size[rows] = known
        margin = np.clip(known - sides, 0, None) / 2
        centers = np.clip(self.position[rows, :2], visible[:, :2] - margin, visible[:, :2] + margin)
        return np.concatenate((centers, np.maximum(known, sides)), axis=1)


def _to_centers(boxes: np.ndarray) -> np.ndarray:
    """Convert XYXY to center x, center y, width, height."""
    boxes = boxes.astype(np.float64)
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


def _sides(centered: np.ndarray) -> np.ndarray:
    """Return (T, 4) the scale of each number: the width along x and the height along y, at least one pixel."""
    return np.maximum(np.concatenate((centered[:, 2:], centered[:, 2:]), axis=1), 1)
