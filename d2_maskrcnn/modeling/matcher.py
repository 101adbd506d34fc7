"""Assigns annotated boxes to anchors or proposals by their intersection over union (arXiv:1506.01497, section
3.1.2).
"""

from collections.abc import Sequence

import torch

from d2_maskrcnn.errors import UserError


class Matcher:
    """Gives each candidate the annotated box that overlaps it most, and a label by how much.

    With thresholds t1 < t2 < ... the label is ``labels[0]`` below t1, ``labels[1]`` from t1 on, and so on; 1 means
    object, 0 background, -1 neither.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        """Args: allow_low_quality_matches: whether each annotated box also makes the candidates that overlap *it*
        most objects.

        Raises:
            UserError: thresholds that don't ascend or aren't positive, a number of labels other than one more, other
                labels.
        """
        ascending = all(low < high for low, high in zip((0.0, *thresholds), thresholds, strict=False))
        if not ascending or len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise UserError(
                f"IOU_THRESHOLDS {list(thresholds)} with IOU_LABELS {list(labels)}: expected ascending positive "
                "thresholds and one label more than thresholds, each -1, 0 or 1"
            )
        self.thresholds = tuple(thresholds)
        self.labels = tuple(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, iou: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Args: iou: (G, R), annotated boxes x candidates.

        Returns:
            matches: (R,) int64, index of the annotated box that overlaps most (0 where there is none).
            labels: (R,) int8.
        """
        if iou.shape[0] == 0:
            matches = torch.zeros(iou.shape[1], dtype=torch.int64, device=iou.device)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        best, matches = iou.max(dim=0)  # each (R,)
        labels = torch.full_like(matches, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds, self.labels[1:], strict=True):
            labels[best >= threshold] = label
        if self.allow_low_quality_matches and iou.shape[1] > 0:
            # The candidates keep the box that overlaps *them* most, which may be another one.
            best_of_each_box = iou.max(dim=1, keepdim=True).values  # (G, 1)
            labels[(iou == best_of_each_box).any(dim=0)] = 1
        return matches, labels
