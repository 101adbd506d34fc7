"""Narrow models with weights and inputs from seeded generators, so that a stored reference needs no weights."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from d2_maskrcnn.config import add_d2_maskrcnn_config, use_d2_maskrcnn_components
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

# Differences from Detectron2's defaults, common to all narrow models. They rule out random sampling.
COMMON = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_STD": [58.0, 57.0, 57.0],
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 150,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 100,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.3,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}

VARIANTS = {
    # The model zoo's options.
    "plain": {},
    # As many other options as fit into one model.
    "options": {
        "MODEL.BACKBONE.FREEZE_AT": 1,
        "MODEL.RESNETS.NUM_GROUPS": 2,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.FPN.NORM": "GN",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.FPN.FUSE_TYPE": "avg",
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.RPN.CONV_DIMS": [-1, 24],
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 0.5,
        "MODEL.RPN.LOSS_WEIGHT": 0.7,
        "MODEL.RPN.BOUNDARY_THRESH": 0,
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 4,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.2],
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.0,
        "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.ROI_MASK_HEAD.NORM": "GN",
    },
    # Training from scratch: batch statistics, no frozen layers.
    "batchnorm": {"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0},
    "ciou": {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "ciou", "MODEL.RPN.BBOX_REG_LOSS_TYPE": "diou"},
    "boxes_only": {"MODEL.MASK_ON": False},
}
# Overrides with which anchors and proposals are sampled at random. In NCHW order no rounding disturbs the samples.
SAMPLING = {
    "D2_MASKRCNN__CHANNELS_LAST": False,
    "MODEL__RPN__BATCH_SIZE_PER_IMAGE": 16,
    "MODEL__RPN__POSITIVE_FRACTION": 0.5,
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 16,
    "MODEL__ROI_HEADS__POSITIVE_FRACTION": 0.25,
}
GRADS = (
    "backbone.bottom_up.res3.0.conv2.weight",
    "backbone.fpn_lateral4.weight",
    "proposal_generator.rpn_head.anchor_deltas.weight",
    "roi_heads.box_head.fc1.bias",
    "roi_heads.box_predictor.bbox_pred.weight",
    "roi_heads.mask_head.deconv.weight",
)


def narrow_cfg(variant="plain", ours=True, **overrides):
    """Return the config of a narrow model.

    Args:
        ours: whether it names this plugin's components, or those of Detectron2.
        overrides: config keys with ``__`` in place of dots.
    """
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    keys = {name.replace("__", "."): value for name, value in overrides.items()}
    cfg.merge_from_list([item for pair in {**COMMON, **VARIANTS[variant], **keys}.items() for item in pair])
    if ours:
        use_d2_maskrcnn_components(cfg)
    return cfg


def fill_weights(model):
    """Set every tensor from a generator seeded with its name: the same on every machine and engine."""
    state = {}
    for name, tensor in model.state_dict().items():
        numbers = np.random.RandomState(zlib.crc32(name.encode()) % 2**31).standard_normal(tuple(tensor.shape))
        state[name] = torch.as_tensor(_scaled(name, numbers), dtype=tensor.dtype)
    model.load_state_dict(state)
    return model


def _scaled(name, numbers):
    if name.endswith("num_batches_tracked"):
        return np.zeros_like(numbers)
    if name.endswith("running_var"):
        return 1.0 + 0.2 * np.abs(numbers)
    if ".norm." in name:
        scale = {"weight": 0.1, "bias": 0.1, "running_mean": 0.1}[name.rsplit(".", 1)[1]]
        offset = (0.3 if ".conv3." in name else 1.0) if name.endswith(".weight") else 0.0
        return offset + scale * numbers
    if name.endswith(".bias"):
        return 0.05 * numbers
    fan_in = numbers[0].size
    gain = {"cls_score": 0.5, "bbox_pred": 1.0, "objectness_logits": 1.0, "anchor_deltas": 0.3}.get(
        name.split(".")[-2], 1.4
    )
    return gain * numbers / np.sqrt(fan_in)


def narrow_model(variant="plain", **overrides):
    return fill_weights(build_model(narrow_cfg(variant, **overrides)))


def make_inputs(masks="bitmask"):
    """Return two images of different sizes with three and two annotated rectangles."""
    inputs = []
    for index, (height, width, boxes) in enumerate(
        [(64, 96, [[4, 6, 40, 50], [30, 20, 90, 60], [50, 2, 62, 14]]), (80, 56, [[2, 2, 50, 70], [20, 30, 36, 44]])]
    ):
        image = np.random.RandomState(index).randint(0, 256, (3, height, width)).astype(np.uint8)
        gt = Instances((height, width))
        gt.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        gt.gt_classes = torch.tensor([0, 2, 1][: len(boxes)])
        gt.gt_masks = rectangles(boxes, height, width, masks)
        inputs.append({"image": torch.from_numpy(image), "height": 2 * height, "width": 2 * width, "instances": gt})
    return inputs


def rectangles(boxes, height, width, kind):
    """Return masks of the left two thirds of each box, as bit masks or polygons."""
    inner = [(x0, y0, x0 + 2 * (x1 - x0) / 3, y1) for x0, y0, x1, y1 in boxes]
    if kind == "polygon":
        return PolygonMasks(
            [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)] for x0, y0, x1, y1 in inner]
        )
    masks = torch.zeros((len(boxes), height, width), dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, inner, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return BitMasks(masks)


def relative_error(actual, expected):
    """Return the largest difference, relative to the largest expected value."""
    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected)
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def pair_boxes(actual, expected, tolerance=0.05):
    """Return for each expected box the index of the actual box that is equal to it within ``tolerance`` pixels.

    The order may differ, because boxes of almost equal scores change places by rounding. Each box is used once.
    """
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape
    distance, index = torch.cdist(expected, actual, p=float("inf")).min(dim=1)
    assert distance.max() < tolerance
    assert len(index.unique()) == len(index)
    return index


@pytest.fixture(scope="session")
def data_dir():
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def narrow():
    """Give test files this module's functions: ``narrow.model("plain")``, ``narrow.cfg(...)``, ``narrow.inputs()``."""

    class Narrow:
        cfg = staticmethod(narrow_cfg)
        model = staticmethod(narrow_model)
        inputs = staticmethod(make_inputs)
        fill = staticmethod(fill_weights)
        rectangles = staticmethod(rectangles)
        relative_error = staticmethod(relative_error)
        pair_boxes = staticmethod(pair_boxes)
        variants = tuple(VARIANTS)
        grads = GRADS
        sampling = SAMPLING

    return Narrow
