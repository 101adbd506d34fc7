"""Assignment of detections to tracks in three rounds (after arXiv:2110.06864 and arXiv:2211.14317).

High-score detections are assigned first, then low-score detections to the remaining tracks, and at last high-score
detections by expanded boxes.
"""

from dataclasses import dataclass, field

import numpy as np

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.masks import coco_iou
from d2_maskrcnn.tracking.motion import BoxMotion
from d2_maskrcnn.tracking.similarity import expanded, mask_grids, mask_iou

HIGH_SCORE_MATCH = 0.25  # minimum similarity of a track and a high-score detection
LOW_SCORE_MATCH = 0.4  # of a track and a low-score detection
EXPANDED_MATCH = 0.1  # IoU of expanded boxes
OTHER_CLASS = 0.6  # factor of the similarity if the classes differ
EXPANSION = 0.3  # of boxes, relative to their sides
EXPANSION_PER_FRAME, MAX_EXPANSION = 0.05, 1.0  # added for each frame since the last detection
SMOOTHING = 0.8  # weight of the earlier frames in a shown score
VOTE_DECAY = 0.95  # factor of the earlier votes for a class, per detection
CLASS_MARGIN = 1.2  # ratio of votes from which a track changes its class
MIN_HITS = 3  # detections from which a track is established
MAX_AGE_OF_NEW = 5  # frames without detection after which a track that is not established ends


@dataclass
class _Track:
    id: int
    votes: dict[int, float]  # class -> sum of its detections' scores, earlier ones decayed
    shown_score: float
    grid: np.ndarray | None  # (28, 28) mask probabilities inside the box, in [0, 1]
    hits: int = 1
    time_since_update: int = 0  # frames since the last detection
    cls: int = field(init=False)

    def __post_init__(self) -> None:
        self.cls = max(self.votes, key=lambda c: self.votes[c])

    def vote(self, cls: int, score: float) -> None:
        """Add a detection's class."""
        self.votes = {c: v * VOTE_DECAY for c, v in self.votes.items()}
        self.votes[cls] = self.votes.get(cls, 0.0) + score
        best = max(self.votes, key=lambda c: self.votes[c])
        if self.votes[best] > CLASS_MARGIN * self.votes.get(self.cls, 0.0):
            self.cls = best


class Tracker:
    """Give each object of a video an id that it keeps from frame to frame.

    Args:
        threshold: score from which a detection is returned and can start a track. Detections below it only keep
            existing tracks alive.
        patience: frames without detection after which a track ends.
    """

    def __init__(self, threshold: float = 0.5, patience: int = 30) -> None:
        self.threshold = threshold
        self.patience = patience
        self._motion = BoxMotion()
        self._tracks: list[_Track] = []
        self._next_id = 1

    def update(self, detections: Detections, frames: float = 1.0) -> tuple[Detections, np.ndarray]:
        """Track the detections of the next frame.

        Args:
            detections: all detections of the frame, including those below the threshold.
            frames: number of frames since the last call; more than 1 if frames were dropped.

        Returns:
            The detections of at least ``threshold``, in their order, with ``track_ids`` and with the class that most of
            their track's frames have; and (N,) float32 scores averaged over the last frames of each track.
        """
        self._motion.predict(frames, np.array([t.time_since_update > 0 for t in self._tracks], dtype=bool))
        grids = mask_grids(detections)
        owner = self._match(detections, grids)  # (N,) index of the track, or -1
        self._continue(detections, grids, owner)
        new = np.flatnonzero((owner < 0) & (detections.scores >= self.threshold))
        owner[new] = np.arange(len(self._tracks), len(self._tracks) + len(new))
        self._begin(detections, grids, new)
        result = self._result(detections, owner)
        self._end(frames, owner)
        return result

    def _match(self, detections: Detections, grids: np.ndarray | None) -> np.ndarray:
        owner = np.full(len(detections), -1)
        if not self._tracks or not len(detections):
            return owner
        boxes = self._motion.boxes()
        same = np.array([t.cls for t in self._tracks])[:, None] == detections.classes[None]
        similarity = self._similarity(boxes, detections, grids) * np.where(same, 1, OTHER_CLASS)
        high = detections.scores >= self.threshold
        age = np.array([t.time_since_update for t in self._tracks])
        self._assign(similarity, owner, high, age >= 0, HIGH_SCORE_MATCH)
        self._assign(similarity, owner, ~high, age == 0, LOW_SCORE_MATCH)
        expansion = np.minimum(EXPANSION + EXPANSION_PER_FRAME * age, MAX_EXPANSION)
        iou = coco_iou(expanded(boxes, expansion), expanded(detections.boxes, EXPANSION)) * same
        self._assign(iou, owner, high, age >= 0, EXPANDED_MATCH)
        return owner

    def _similarity(self, boxes: np.ndarray, detections: Detections, grids: np.ndarray | None) -> np.ndarray:
        """Return (T, N) in [0, 1]: the IoU of boxes, averaged with that of masks where both have one."""
        similarity = coco_iou(boxes, detections.boxes)
        with_mask = np.array([i for i, t in enumerate(self._tracks) if t.grid is not None], dtype=int)
        if grids is not None and len(with_mask):
            own = np.stack([t.grid for t in self._tracks if t.grid is not None])
            of_masks = mask_iou(own, boxes[with_mask], grids, detections.boxes, detections.image_size)
            similarity[with_mask] = (similarity[with_mask] + of_masks) / 2
        return similarity

    @staticmethod
    def _assign(
        similarity: np.ndarray, owner: np.ndarray, detections: np.ndarray, tracks: np.ndarray, minimum: float
    ) -> None:
        """Assign free detections to free tracks with the highest total similarity, and update ``owner``.

        Args:
            similarity: (T, N).
            owner: (N,) index of each detection's track, or -1.
            detections, tracks: (N,) and (T,) bool, those that take part.
            minimum: similarity of a pair.
        """
        from scipy.optimize import linear_sum_assignment  # slow to import, and images need no tracks

        free = tracks.copy()
        free[owner[owner >= 0]] = False
        rows, columns = np.flatnonzero(free), np.flatnonzero(detections & (owner < 0))
        if not len(rows) or not len(columns):
            return
        part = similarity[np.ix_(rows, columns)]
        # Pairs below the minimum count as 0, so that they cannot displace a good pair.
        for i, j in zip(*linear_sum_assignment(np.where(part >= minimum, part, 0), maximize=True), strict=True):
            if part[i, j] >= minimum:
                owner[columns[j]] = rows[i]

    def _continue(self, detections: Detections, grids: np.ndarray | None, owner: np.ndarray) -> None:
        """Update the tracks that have a detection."""
        matched = np.flatnonzero(owner >= 0)
        self._motion.correct(owner[matched], detections.boxes[matched])
        for index in matched:
            track, score = self._tracks[owner[index]], float(detections.scores[index])
            track.vote(int(detections.classes[index]), score)
            track.shown_score = SMOOTHING * track.shown_score + (1 - SMOOTHING) * score
            track.grid = track.grid if grids is None else grids[index]
            track.hits += 1

    def _begin(self, detections: Detections, grids: np.ndarray | None, new: np.ndarray) -> None:
        """Start a track for each detection of ``new``."""
        self._motion.add(detections.boxes[new])
        for index in new:
            score = float(detections.scores[index])
            grid = None if grids is None else grids[index]
            self._tracks.append(_Track(self._next_id, {int(detections.classes[index]): score}, score, grid))
            self._next_id += 1

    def _result(self, detections: Detections, owner: np.ndarray) -> tuple[Detections, np.ndarray]:
        shown = np.flatnonzero(detections.scores >= self.threshold)  # all of them have a track
        tracks = [self._tracks[owner[index]] for index in shown]
        result = detections[shown]
        result.track_ids = np.array([t.id for t in tracks], dtype=np.int64)
        result.classes = np.array([t.cls for t in tracks], dtype=np.int64)
        return result, np.array([t.shown_score for t in tracks], dtype=np.float32)

    def _end(self, frames: float, owner: np.ndarray) -> None:
        """Remove the tracks without a detection for too long."""
        updated = set(owner[owner >= 0].tolist())
        for index, track in enumerate(self._tracks):
            track.time_since_update = 0 if index in updated else track.time_since_update + max(1, round(frames))
        keep = [t.time_since_update <= (self.patience if t.hits >= MIN_HITS else MAX_AGE_OF_NEW) for t in self._tracks]
        self._motion.keep(np.array(keep, dtype=bool))
        self._tracks = [track for track, kept in zip(self._tracks, keep, strict=True) if kept]
