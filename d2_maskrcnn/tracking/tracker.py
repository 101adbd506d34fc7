"""Which detection is which object: three rounds, sure detections first (after arXiv:2110.06864, arXiv:2211.14317)."""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.tracking.motion import BoxMotion
from d2_maskrcnn.tracking.similarity import box_iou, mask_iou, shapes_of, widened

SURE_MATCH = 0.25  # likeness that a sure detection needs to continue a track
UNSURE_MATCH = 0.4  # the same for one below the threshold
WIDE_MATCH = 0.1  # the same for widened boxes
OTHER_CLASS = 0.6  # likeness is multiplied by this where the classes differ
WIDTH = 0.3  # how far boxes are widened, and what every frame without a find adds to that
WIDTH_PER_FRAME, WIDEST = 0.05, 1.0
SMOOTHING = 0.8  # how much of a shown score is kept from frame to frame
VOTE_DECAY = 0.95  # how much of the votes for a class is kept from frame to frame
YOUNG = 3  # finds until which a track counts as new ...
YOUNG_PATIENCE = 5  # ... and frames after which such a one is given up


@dataclass
class _Track:
    id: int
    votes: dict[int, float]  # class -> what its detections' scores add up to, older ones counting less
    shown_score: float
    shape: np.ndarray | None  # (28, 28) in [0, 1], inside the box
    finds: int = 1
    unseen: int = 0  # frames since it was last found
    cls: int = field(init=False)

    def __post_init__(self) -> None:
        self.cls = max(self.votes, key=lambda c: self.votes[c])

    def vote(self, cls: int, score: float) -> None:
        self.votes = {c: v * VOTE_DECAY for c, v in self.votes.items()}
        self.votes[cls] = self.votes.get(cls, 0.0) + score
        best = max(self.votes, key=lambda c: self.votes[c])
        if self.votes[best] > 1.2 * self.votes.get(self.cls, 0.0):  # a class is not given up for a hair's breadth
            self.cls = best


class Tracker:
    """Gives the detections of a video's frames numbers that stay with the objects.

    Args:
        threshold: score from which a detection is sure: it is given out and can begin a track. Less sure ones only help
            a track over a few frames.
        patience: frames that an object may stay hidden.
    """

    def __init__(self, threshold: float = 0.5, patience: int = 30) -> None:
        self.threshold = threshold
        self.patience = patience
        self._motion = BoxMotion()
        self._tracks: list[_Track] = []
        self._next_id = 1

    def update(self, found: Detections, frames: float = 1.0) -> tuple[Detections, np.ndarray]:
        """Takes in the next frame.

        Args:
            found: all detections, those below the threshold too.
            frames: how many frames of the video have passed since the last one (more than 1 if some were dropped).

        Returns:
            the detections of at least the threshold, in their order, with ``track_ids`` and with the class that most of
            their track's frames had; and for each of them the score averaged over the last frames.
        """
        self._motion.predict(frames, np.array([t.unseen > 0 for t in self._tracks], dtype=bool))
        shapes = shapes_of(found)
        owner = self._match(found, shapes)  # (N,) index of the track, -1 for none
        self._continue(found, shapes, owner)
        fresh = np.flatnonzero((owner < 0) & (found.scores >= self.threshold))
        owner[fresh] = np.arange(len(self._tracks), len(self._tracks) + len(fresh))
        self._begin(found, shapes, fresh)
        result = self._result(found, owner)
        self._forget(frames, owner)
        return result

    def _match(self, found: Detections, shapes: np.ndarray | None) -> np.ndarray:
        owner = np.full(len(found), -1)
        if not self._tracks or not len(found):
            return owner
        boxes = self._motion.boxes()
        same = np.array([t.cls for t in self._tracks])[:, None] == found.classes[None]
        likeness = self._likeness(boxes, found, shapes) * np.where(same, 1, OTHER_CLASS)
        sure = found.scores >= self.threshold
        unseen = np.array([t.unseen for t in self._tracks])
        self._assign(likeness, owner, sure, unseen >= 0, SURE_MATCH)
        self._assign(likeness, owner, ~sure, unseen == 0, UNSURE_MATCH)
        width = np.minimum(WIDTH + WIDTH_PER_FRAME * unseen, WIDEST)
        wide = box_iou(widened(boxes, width), widened(found.boxes, WIDTH)) * same
        self._assign(wide, owner, sure, unseen >= 0, WIDE_MATCH)
        return owner

    def _likeness(self, boxes: np.ndarray, found: Detections, shapes: np.ndarray | None) -> np.ndarray:
        """(T, N) in [0, 1]: of boxes, and of masks where both have one."""
        likeness = box_iou(boxes, found.boxes)
        with_shape = np.array([i for i, t in enumerate(self._tracks) if t.shape is not None], dtype=int)
        if shapes is not None and len(with_shape):
            kept = np.stack([t.shape for t in self._tracks if t.shape is not None])
            of_masks = mask_iou(kept, boxes[with_shape], shapes, found.boxes, found.image_size)
            likeness[with_shape] = (likeness[with_shape] + of_masks) / 2
        return likeness

    @staticmethod
    def _assign(likeness: np.ndarray, owner: np.ndarray, found: np.ndarray, tracks: np.ndarray, least: float) -> None:
        """Gives free detections to free tracks so that all pairs together are most alike; fills ``owner``."""
        free = tracks.copy()
        free[owner[owner >= 0]] = False
        rows, columns = np.flatnonzero(free), np.flatnonzero(found & (owner < 0))
        if not len(rows) or not len(columns):
            return
        part = likeness[np.ix_(rows, columns)]
        # What is too unlike counts as nothing, so that it cannot push a good pair aside.
        for i, j in zip(*linear_sum_assignment(np.where(part >= least, part, 0), maximize=True), strict=True):
            if part[i, j] >= least:
                owner[columns[j]] = rows[i]

    def _continue(self, found: Detections, shapes: np.ndarray | None, owner: np.ndarray) -> None:
        matched = np.flatnonzero(owner >= 0)
        self._motion.correct(owner[matched], found.boxes[matched])
        for index in matched:
            track, score = self._tracks[owner[index]], float(found.scores[index])
            track.vote(int(found.classes[index]), score)
            track.shown_score = SMOOTHING * track.shown_score + (1 - SMOOTHING) * score
            track.shape = track.shape if shapes is None else shapes[index]
            track.finds += 1

    def _begin(self, found: Detections, shapes: np.ndarray | None, fresh: np.ndarray) -> None:
        self._motion.add(found.boxes[fresh])
        for index in fresh:
            score = float(found.scores[index])
            shape = None if shapes is None else shapes[index]
            self._tracks.append(_Track(self._next_id, {int(found.classes[index]): score}, score, shape))
            self._next_id += 1

    def _result(self, found: Detections, owner: np.ndarray) -> tuple[Detections, np.ndarray]:
        shown = np.flatnonzero(found.scores >= self.threshold)  # each of these has a track by now
        tracks = [self._tracks[owner[index]] for index in shown]
        result = found[shown]
        result.track_ids = np.array([t.id for t in tracks], dtype=np.int64)
        result.classes = np.array([t.cls for t in tracks], dtype=np.int64)
        return result, np.array([t.shown_score for t in tracks], dtype=np.float32)

    def _forget(self, frames: float, owner: np.ndarray) -> None:
        """Counts how long tracks have not been found, and gives up those that were hidden for too long."""
        seen = set(owner[owner >= 0].tolist())
        for index, track in enumerate(self._tracks):
            track.unseen = 0 if index in seen else track.unseen + max(1, round(frames))
        keep = np.array(
            [t.unseen <= (self.patience if t.finds >= YOUNG else YOUNG_PATIENCE) for t in self._tracks], dtype=bool
        )
        self._motion.keep(keep)
        self._tracks = [t for t, kept in zip(self._tracks, keep, strict=True) if kept]
