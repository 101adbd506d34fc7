"""Non-maximum suppression with torchvision's operator.

Importing torchvision takes longer than importing PyTorch, since it imports PyTorch's compiler. One operator is all that
detecting objects needs of it, so its library is loaded without the package.
"""

import functools
import importlib
import importlib.machinery
import importlib.util
from pathlib import Path

import torch

from detectron2._names import lookup

__all__ = ["batched_nms", "nms"]

_LIBRARIES = ("_C_stable", "_C")  # names of torchvision's library in newer and older releases
_MAX_COORDINATES = 4000  # of boxes that are suppressed in one call


@functools.cache
def load_operators() -> None:
    """Load torchvision's library, or import the package where the library is not found."""
    package = importlib.util.find_spec("torchvision")
    if package is not None and package.origin is not None:
        details = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
        finder = importlib.machinery.FileFinder(str(Path(package.origin).parent), details)
        for spec in filter(None, map(finder.find_spec, _LIBRARIES)):
            try:
                torch.ops.load_library(spec.origin)
            except OSError:  # it depends on libraries that the package finds
                break
            if hasattr(torch.ops.torchvision, "nms"):
                return
    importlib.import_module("torchvision")


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Remove every box that overlaps a higher-scored box by more than the threshold.

    Args:
        boxes: (N, 4) XYXY.
        scores: (N,).
        iou_threshold: in [0, 1].

    Returns:
        (K,) int64: indices of the remaining boxes, by descending score.
    """
    load_operators()
    kept: torch.Tensor = torch.ops.torchvision.nms(boxes, scores, iou_threshold)
    return kept


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Remove every box that overlaps a higher-scored box *of its group* by more than the threshold.

    On a CPU, few boxes are suppressed in one call after each group was moved to a place of its own; many boxes are
    suppressed group by group, since one call would compare too many pairs. torchvision has the same rule, so that the
    results are equal.

    Args:
        boxes: (N, 4) XYXY. Converted to float32, since half precision cannot represent the offsets that separate
            groups.
        scores: (N,).
        idxs: (N,) group of each box, such as its class or feature level.
        iou_threshold: in [0, 1].

    Returns:
        (K,) int64: indices of the remaining boxes, by descending score.
    """
    boxes = boxes.float()
    if boxes.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        from torchvision import ops

        return ops.batched_nms(boxes, scores, idxs, iou_threshold)
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    if boxes.numel() <= _MAX_COORDINATES:
        offsets = idxs.to(boxes) * (boxes.max() + 1)
        return nms(boxes + offsets[:, None], scores, iou_threshold)
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for group in idxs.unique():
        members = (idxs == group).nonzero().flatten()
        kept[members[nms(boxes[members], scores[members], iou_threshold)]] = True
    indices = kept.nonzero().flatten()
    return indices[scores[indices].argsort(descending=True)]


__getattr__ = lookup(__name__)
