"""How boxes move: a Kalman filter with constant velocity (Kalman 1960; for tracking by boxes, arXiv:1602.00763).

The four measured numbers of a box, (centre x, centre y, width, height), are taken as independent of one another, so
each has a 2x2 covariance of (position, velocity) of its own and everything is a few array operations for all tracks
together.
"""

import numpy as np

# Standard deviations as parts of the box's side: of a measurement, of what a step adds to the velocity, and of the
# velocity of a new track. Detections jitter by a few percent; things in a 10 fps video change speed quickly.
MEASUREMENT = 0.05
ACCELERATION = 0.03
FIRST_VELOCITY = 0.15
# How fast the known size of an object follows its boxes, as parts of the difference for each frame: quickly if they
# grow, slowly if they shrink, as that is what something in front of the object does to them too.
GROWING, SHRINKING = 0.5, 0.05


class BoxMotion:
    """Positions and velocities of T boxes.

    Attributes:
        position: (T, 4) centre x, centre y, width, height in pixels.
        velocity: (T, 4) the same per frame.
    """

    def __init__(self) -> None:
        self.position = np.zeros((0, 4))
        self.velocity = np.zeros((0, 4))
        self._covariance = np.zeros((0, 4, 3))  # variance of position, covariance, variance of velocity
        self._size = np.zeros((0, 2))  # known width and height of the whole object

    def __len__(self) -> int:
        return len(self.position)

    def boxes(self) -> np.ndarray:
        """(T, 4) float32, XYXY in pixels; they may leave the image."""
        half = self.position[:, 2:] / 2
        return np.concatenate((self.position[:, :2] - half, self.position[:, :2] + half), axis=1).astype(np.float32)

    def add(self, boxes: np.ndarray) -> None:
        """New tracks that stand still: (N, 4) XYXY."""
        measured = _centred(boxes)
        sides = _sides(measured)
        zero = np.zeros_like(sides)
        fresh = np.stack(((MEASUREMENT * sides) ** 2, zero, (FIRST_VELOCITY * sides) ** 2), axis=2)
        self.position = np.concatenate((self.position, measured))
        self.velocity = np.concatenate((self.velocity, np.zeros_like(measured)))
        self._covariance = np.concatenate((self._covariance, fresh))
        self._size = np.concatenate((self._size, measured[:, 2:]))

    def keep(self, rows: np.ndarray) -> None:
        """Forgets the tracks that are not picked by ``rows`` (index or bool array)."""
        self.position, self.velocity = self.position[rows], self.velocity[rows]
        self._covariance, self._size = self._covariance[rows], self._size[rows]

    def predict(self, frames: float, unseen: np.ndarray) -> None:
        """Moves everything on.

        Args:
            frames: how many frames have passed.
            unseen: (T,) bool: tracks not found in the frame before. They keep moving but no longer grow or shrink, as
                a box that is about to be covered shrinks quickly.
        """
        self.velocity[unseen, 2:] = 0
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
        """Takes in where the tracks ``rows`` were found: (len(rows), 4) XYXY."""
        measured = self._whole(rows, _centred(boxes))
        p, c, v = np.moveaxis(self._covariance[rows], 2, 0)
        total = p + (MEASUREMENT * _sides(measured)) ** 2
        gain_p, gain_v = p / total, c / total
        error = measured - self.position[rows]
        self.position[rows] += gain_p * error
        self.velocity[rows] += gain_v * error
        self._covariance[rows] = np.stack(((1 - gain_p) * p, (1 - gain_p) * c, v - gain_v * c), axis=2)

    def _whole(self, rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The boxes of the whole objects, of which ``seen``, (N, 4) centred, may show a part only.

        An object of known size that covers the part seen can have its centre anywhere within the difference of the two
        sizes: it is taken to be where it was expected, as near as that allows. So something that goes behind another
        thing keeps its speed, though the middle of what is seen of it slows down.
        """
        known, sides = self._size[rows], seen[:, 2:]
        known = known + np.where(sides > known, GROWING, SHRINKING) * (sides - known)
        self._size[rows] = known
        room = np.clip(known - sides, 0, None) / 2
        centres = np.clip(self.position[rows, :2], seen[:, :2] - room, seen[:, :2] + room)
        return np.concatenate((centres, np.maximum(known, sides)), axis=1)


def _centred(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


def _sides(centred: np.ndarray) -> np.ndarray:
    """(T, 4): the width for what is along x and the height for what is along y, at least a pixel."""
    return np.maximum(np.concatenate((centred[:, 2:], centred[:, 2:]), axis=1), 1)
