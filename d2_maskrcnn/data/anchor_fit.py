"""Compare the sizes of annotated boxes with the anchors of a config, in pixels of the network's input."""

from typing import Any

import numpy as np

from d2_maskrcnn.modeling.rpn.anchor_generator import cell_anchors
from detectron2.config import CfgNode

GOOD_IOU = 0.5  # of a box with an anchor shape that fits it


def input_scale(cfg: CfgNode, sizes: np.ndarray) -> np.ndarray:
    """Return the factor by which images are resized in testing (``INPUT.MIN_SIZE_TEST``, ``MAX_SIZE_TEST``): (n,).

    Args:
        sizes: (n, 2) width and height of the images in pixels.
    """
    if cfg.INPUT.MIN_SIZE_TEST == 0:
        return np.ones(len(sizes))
    return np.minimum(cfg.INPUT.MIN_SIZE_TEST / sizes.min(axis=1), cfg.INPUT.MAX_SIZE_TEST / sizes.max(axis=1))


def anchor_shapes(cfg: CfgNode) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return (a, 2) width and height of the anchor shapes of all levels, and a description of each."""
    node, names = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RPN.IN_FEATURES
    shapes, anchors = [], []
    for level, name in enumerate(names):
        sizes = node.SIZES[level if len(node.SIZES) > 1 else 0]
        ratios = node.ASPECT_RATIOS[level if len(node.ASPECT_RATIOS) > 1 else 0]
        cells = cell_anchors(sizes, ratios)
        shapes += (cells[:, 2:] - cells[:, :2]).tolist()
        anchors += [{"level": name, "size": size, "ratio": ratio} for size in sizes for ratio in ratios]
    return np.asarray(shapes), anchors


def shape_iou(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Compute (n, a) IoU of boxes (n, 2) and anchors (a, 2), given as width and height, centered on the same point."""
    common = np.minimum(sides[:, None], shapes[None]).prod(axis=2)
    return common / (sides.prod(axis=1)[:, None] + shapes.prod(axis=1)[None] - common)
