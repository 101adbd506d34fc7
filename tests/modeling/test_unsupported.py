import pytest

from d2_maskrcnn.config import add_d2_maskrcnn_config
from d2_maskrcnn.errors import UserError
from detectron2.config import get_cfg
from detectron2.modeling import build_model

# key, a value that this model does not support
REFUSED = [
    ("MODEL.KEYPOINT_ON", True),
    ("MODEL.LOAD_PROPOSALS", True),
    ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True),
    ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
    ("VIS_PERIOD", 10),
    ("MODEL.RESNETS.DEPTH", 18),
    ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
    ("MODEL.RESNETS.RES5_DILATION", 4),
    ("MODEL.RESNETS.NORM", "LayerNorm"),
    ("MODEL.RESNETS.NORM", "GN"),  # on 8 channels
    ("MODEL.RESNETS.OUT_FEATURES", ["res2", "linear"]),
    ("MODEL.RESNETS.OUT_FEATURES", []),
    ("MODEL.FPN.IN_FEATURES", ["res2", "res6"]),
    ("MODEL.FPN.IN_FEATURES", ["res2", "res4"]),
    ("MODEL.FPN.FUSE_TYPE", "max"),
    ("MODEL.FPN.NORM", "GN"),  # on 16 channels
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]]),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[]]),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", 1.5),
    ("MODEL.RPN.IN_FEATURES", ["p2", "p9"]),
    ("MODEL.RPN.IN_FEATURES", []),
    ("MODEL.RPN.CONV_DIMS", []),
    ("MODEL.RPN.CONV_DIMS", [0]),
    ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l2"),
    ("MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3]),
    ("MODEL.RPN.IOU_LABELS", [0, 2, 1]),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["res4"]),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"]),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.3, 0.5]),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 0),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "l2"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", 0),
    ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignRotated"),
    ("MODEL.ROI_MASK_HEAD.NORM", "GN"),
    ("MODEL.PIXEL_STD", [1.0]),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=lambda item: str(item))
def test_refused_when_built(narrow, key, value):
    cfg = narrow.cfg(**{key.replace(".", "__"): value})
    with pytest.raises(UserError) as caught:
        build_model(cfg)
    message = str(caught.value)
    assert key.rsplit(".", 1)[-1] in message and "\n" not in message


def test_every_level_needs_the_same_number_of_anchors(narrow):
    cfg = narrow.cfg(MODEL__ANCHOR_GENERATOR__SIZES=[[8], [16, 20], [32], [64], [128]])
    with pytest.raises(UserError, match=r"MODEL\.RPN\.IN_FEATURES have \[16\] channels and \[3, 6\] anchors"):
        build_model(cfg)


def test_defaults_of_our_node():
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    assert cfg.D2_MASKRCNN.CHANNELS_LAST is True
