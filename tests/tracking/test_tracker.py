import numpy as np
import pytest

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import CropMasks
from d2_maskrcnn.structures.masks import coco_iou
from d2_maskrcnn.tracking import Tracker
from d2_maskrcnn.tracking.similarity import expanded, mask_grids, mask_iou

SIZE = (200, 400)


def box(x, y=100.0, side=30.0):
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def test_no_detections(make_detections):
    tracker = Tracker()
    for _ in range(3):
        tracked, scores = tracker.update(make_detections([], SIZE))
        assert len(tracked) == len(scores) == len(tracked.track_ids) == 0


def test_ids_follow_objects_whatever_their_order(make_detections):
    tracker = Tracker()
    rng = np.random.default_rng(0)
    for frame in range(40):
        boxes = np.array([box(20 + 5 * frame), box(380 - 5 * frame, 40), box(200, 170)])
        order = rng.permutation(3)
        tracked, _ = tracker.update(make_detections(boxes[order] + rng.normal(0, 0.5, (3, 4)), SIZE))
        if frame == 0:
            names = dict(zip(order.tolist(), tracked.track_ids.tolist(), strict=True))
        assert tracked.track_ids.tolist() == [names[i] for i in order.tolist()]


@pytest.mark.parametrize("hidden", [1, 5, 15])
def test_ids_survive_short_occlusions(make_detections, hidden):
    tracker = Tracker()
    for frame in range(30 + hidden):
        seen = not 15 <= frame < 15 + hidden
        tracked, _ = tracker.update(make_detections([box(20 + 6 * frame)] if seen else [], SIZE))
        if seen:
            assert tracked.track_ids.tolist() == [1]


@pytest.mark.parametrize("side", [40, 60])
@pytest.mark.parametrize(
    ("post", "speed"), [(10, 2), (20, 2), (50, 2), (10, -3), (50, -3), (90, -3), (10, 6), (50, 6), (90, 6)]
)
def test_ids_survive_a_post_in_front(make_detections, side, post, speed):
    """The visible part of an object shrinks towards the post, vanishes, and grows on the other side of the post."""
    tracker, ids = Tracker(), set()
    left_end, right_end = 200 - post / 2, 200 + post / 2
    for frame in range(340 // abs(speed)):
        x0 = 10 + speed * frame if speed > 0 else 390 - side + speed * frame
        parts = [(x0, min(x0 + side, left_end)), (max(x0, right_end), x0 + side)]
        seen = max(parts, key=lambda part: part[1] - part[0])  # the larger part is detected
        if seen[1] - seen[0] < side / 4:  # a sliver is not
            tracker.update(make_detections([], SIZE))
            continue
        tracked, _ = tracker.update(make_detections([(seen[0], 100, seen[1], 100 + side)], SIZE))
        ids.update(tracked.track_ids.tolist())
    assert ids == {1}


@pytest.mark.parametrize("growth", [0.985, 1.02])
def test_objects_that_grow_or_shrink_are_tracked(make_detections, growth):
    tracker = Tracker()
    for frame in range(50):
        side = (200 if growth < 1 else 60) * growth**frame
        tracked, _ = tracker.update(make_detections([(100 + 2 * frame, 40, 100 + 2 * frame + side, 40 + side)], SIZE))
        assert tracked.track_ids.tolist() == [1]
        assert coco_iou(tracker._motion.boxes(), tracked.boxes)[0, 0] > 0.5


def test_objects_that_cross_keep_their_ids(make_detections):
    tracker = Tracker()
    for frame in range(40):
        boxes = [box(100 + 4 * frame, 100), box(260 - 4 * frame, 110)]
        tracked, _ = tracker.update(make_detections(boxes, SIZE))
        assert tracked.track_ids.tolist() == [1, 2]


def test_an_object_behind_another_keeps_its_id(make_detections):
    tracker = Tracker()
    for frame in range(40):
        boxes = [box(100 + 4 * frame, 100), box(260 - 4 * frame, 100)]
        covered = abs(boxes[0][0] - boxes[1][0]) < 20
        tracked, _ = tracker.update(make_detections(boxes[:1] if covered else boxes, SIZE))
        assert tracked.track_ids.tolist() == ([1] if covered else [1, 2])


def test_after_a_long_absence_an_object_gets_a_new_id(make_detections):
    tracker = Tracker(patience=10)
    for _ in range(5):
        tracker.update(make_detections([box(100)], SIZE))
    for _ in range(12):
        tracker.update(make_detections([], SIZE))
    assert tracker.update(make_detections([box(100)], SIZE))[0].track_ids.tolist() == [2]
    assert len(tracker._tracks) == 1


def test_fast_small_objects_are_tracked(make_detections):
    """The boxes of an object in consecutive frames do not overlap."""
    tracker = Tracker()
    for frame in range(15):
        tracked, _ = tracker.update(make_detections([box(20 + 22 * frame, side=20)], SIZE))
        assert tracked.track_ids.tolist() == [1]


def test_low_score_detections_only_continue_tracks(make_detections):
    tracker = Tracker(threshold=0.5)
    assert len(tracker.update(make_detections([box(100)], SIZE, scores=[0.3]))[0]) == 0
    shown = []
    for frame in range(60):
        score = 0.9 if frame < 10 or frame >= 50 else 0.3
        tracked, _ = tracker.update(make_detections([box(20 + 5 * frame)], SIZE, scores=[score]))
        assert (tracked.scores >= 0.5).all()
        shown += tracked.track_ids.tolist()
    assert shown == [1] * 20  # the same id after 40 frames with low scores


def test_classes_and_shown_scores_do_not_flicker(make_detections):
    tracker = Tracker()
    classes, shown = [], []
    for frame in range(30):
        odd = frame % 3 == 2
        tracked, scores = tracker.update(
            make_detections([box(100 + frame)], SIZE, classes=[int(odd)], scores=[0.6 if odd else 0.9])
        )
        classes.append(int(tracked.classes[0]))
        shown.append(float(scores[0]))
        assert tracked.scores[0] == pytest.approx(0.6 if odd else 0.9)  # not averaged
    assert set(classes) == {0}
    assert np.abs(np.diff(shown)).max() < 0.1


def test_motion_continues_over_dropped_frames(make_detections):
    """A live source that delivers every fifth frame only."""
    tracker = Tracker()
    for step, frame in enumerate([0, 1, 2, 3, 4, 5, 10, 15, 20, 25]):
        tracked, _ = tracker.update(make_detections([box(20 + 8 * frame)], SIZE), frames=1 if step < 6 else 5)
        assert tracked.track_ids.tolist() == [1]


def test_masks_distinguish_objects_with_the_same_box(make_detections):
    """Two objects in the left and the right half of one box, whose detections change their order."""
    shapes = np.zeros((2, 28, 28), np.float32)
    shapes[0, :, :14] = shapes[1, :, 14:] = 1
    tracker = Tracker()
    for frame in range(10):
        order = [0, 1] if frame % 2 == 0 else [1, 0]
        tracked, _ = tracker.update(make_detections([box(100), box(100)], SIZE, probabilities=shapes[order]))
        assert tracked.track_ids.tolist() == [i + 1 for i in order]


def test_expanded_boxes():
    assert expanded(np.array([[0, 0, 10, 10]]), 0.1) == pytest.approx(np.array([[-1, -1, 11, 11]]))


def test_mask_iou_is_that_of_the_images(make_detections):
    half = np.zeros((2, 28, 28), np.float32)
    half[0, :, :14], half[1] = 1, 1
    tracked = make_detections([[20, 20, 120, 120], [20, 20, 120, 120]], SIZE, probabilities=half)
    iou = mask_iou(half, tracked.boxes, half, tracked.boxes, SIZE)
    assert iou == pytest.approx(np.array([[1, 0.5], [0.5, 1]]), abs=0.03)


def test_whole_image_masks_are_tracked_too(make_detections):
    tracked = make_detections([box(100), box(300)], SIZE)
    crops = Detections(
        tracked.boxes, tracked.scores, tracked.classes, SIZE, CropMasks.from_images(np.stack(list(tracked.masks)), SIZE)
    )
    assert mask_grids(crops).shape == (2, 28, 28) and mask_grids(crops).mean() > 0.95
    tracker = Tracker()
    assert tracker.update(crops)[0].track_ids.tolist() == tracker.update(crops)[0].track_ids.tolist() == [1, 2]
