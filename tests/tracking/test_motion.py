import numpy as np
import pytest

from d2_maskrcnn.tracking.motion import BoxMotion


def box(x, y=50.0, side=20.0):
    return np.array([[x - side / 2, y - side / 2, x + side / 2, y + side / 2]], np.float32)


def test_no_tracks():
    motion = BoxMotion()
    motion.predict(1, np.zeros(0, bool))
    assert motion.boxes().shape == (0, 4)


def test_learns_a_constant_velocity():
    motion = BoxMotion()
    motion.add(box(0))
    for step in range(1, 20):
        motion.predict(1, np.array([False]))
        motion.correct(np.array([0]), box(6 * step))
    assert motion.velocity[0, 0] == pytest.approx(6, rel=0.05)
    motion.predict(5, np.array([False]))  # five frames at once
    assert motion.boxes()[0, 0] == pytest.approx(6 * 24 - 10, abs=3)


def test_variance_grows_without_detections_and_shrinks_with_them():
    motion = BoxMotion()
    motion.add(box(0))
    motion.predict(1, np.array([False]))
    before = motion._covariance[0, 0, 0]
    motion.predict(1, np.array([True]))
    assert motion._covariance[0, 0, 0] > before
    motion.correct(np.array([0]), box(1))
    assert motion._covariance[0, 0, 0] < before


def test_boxes_of_lost_tracks_keep_their_size():
    motion = BoxMotion()
    motion.add(box(0, side=40))
    for side in (36, 30, 24):
        motion.predict(1, np.array([False]))
        motion.correct(np.array([0]), box(0, side=side))
    before = motion.position[0, 2]
    motion.predict(1, np.array([True]))
    assert motion.position[0, 2] == pytest.approx(before)


def test_tracks_are_removed():
    motion = BoxMotion()
    motion.add(np.concatenate((box(0), box(100))))
    motion.keep(np.array([False, True]))
    assert len(motion) == 1 and motion.boxes()[0, 0] == pytest.approx(90)
