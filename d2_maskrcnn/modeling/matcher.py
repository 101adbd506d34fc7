"""Assignment of ground-truth boxes to anchors or proposals by IoU (arXiv:1506.01497, section 3.1.2)."""

from collections.abc import Sequence

import torch

from d2_maskrcnn.errors import UserError


class Matcher:
    """Match each candidate box to the ground-truth box with the highest IoU, and label it by that IoU.

    With thresholds t1 < t2 < ... the label is ``labels[0]`` below t1, ``labels[1]`` in [t1, t2), and so on.

    Args:
        thresholds: ascending IoUs, above 0.
        labels: one more than ``thresholds``: 1 object, 0 background, -1 ignored.
        allow_low_quality_matches: whether the candidates with the highest IoU for a ground-truth box are labeled 1
            even if that IoU is low.

    Raises:
        UserError: thresholds or labels are not as described.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
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
        """Match and label R candidates.

        Args:
            iou: (G, R), ground-truth boxes x candidates.

        Returns:
            matches: (R,) int64, index of the ground-truth box with the highest IoU; 0 if G is 0.
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
            # Only the label changes: the match remains the candidate's own best box, which may be another one.
            best_per_box = iou.max(dim=1, keepdim=True).values  # (G, 1)
            labels[(iou == best_per_box).any(dim=0)] = 1
        return matches, labels
