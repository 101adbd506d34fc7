"""Defaults of ``MODEL``: backbone, anchors and region proposal network."""

from detectron2.config.config import CfgNode as CN


def model_defaults() -> CN:
    """Return the node ``MODEL`` without the nodes of its heads."""
    node = CN()
    # Device of the model: "cuda", "cpu" or any other PyTorch device.
    node.DEVICE = "cuda"
    # Name in META_ARCH_REGISTRY.
    node.META_ARCHITECTURE = "GeneralizedRCNN"
    # Initial weights: a path or an address (https://, detectron2://). Empty: random weights.
    node.WEIGHTS = ""
    # Optional parts of an R-CNN.
    node.MASK_ON = False
    node.KEYPOINT_ON = False
    node.LOAD_PROPOSALS = False
    # Images of INPUT.FORMAT in [0, 255] are normalized to (x - PIXEL_MEAN) / PIXEL_STD per channel. These are the
    # means of ImageNet in BGR; the deviation of 1 belongs to Caffe2's ImageNet weights, which include the division.
    node.PIXEL_MEAN = [103.530, 116.280, 123.675]
    node.PIXEL_STD = [1.0, 1.0, 1.0]

    node.BACKBONE = _backbone_defaults()
    node.FPN = _fpn_defaults()
    node.RESNETS = _resnet_defaults()
    node.ANCHOR_GENERATOR = _anchor_defaults()
    node.PROPOSAL_GENERATOR = CN()
    # Name in PROPOSAL_GENERATOR_REGISTRY, or "PrecomputedProposals".
    node.PROPOSAL_GENERATOR.NAME = "RPN"
    # Proposals with a side of up to this many pixels of the network's input are removed.
    node.PROPOSAL_GENERATOR.MIN_SIZE = 0
    node.RPN = _rpn_defaults()
    return node


def _backbone_defaults() -> CN:
    node = CN()
    # Name in BACKBONE_REGISTRY.
    node.NAME = "build_resnet_backbone"
    # Number of stages, the stem being the first, that are not trained.
    node.FREEZE_AT = 2
    return node


def _fpn_defaults() -> CN:
    node = CN()
    # Names of the bottom-up features that the pyramid is built on, e.g. ["res2", "res3", "res4", "res5"].
    node.IN_FEATURES = []
    node.OUT_CHANNELS = 256
    # Normalization of the lateral and output convolutions; empty: none.
    node.NORM = ""
    # Combination of a lateral and a top-down feature: "sum" or "avg".
    node.FUSE_TYPE = "sum"
    return node


def _resnet_defaults() -> CN:
    node = CN()
    # 18, 34, 50, 101 or 152 layers.
    node.DEPTH = 50
    # Output features, out of "stem", "res2", "res3", "res4", "res5".
    node.OUT_FEATURES = ["res4"]
    # Groups of the 3x3 convolutions, and channels per group in res2 (1 x 64: ResNet; 32 x 8: ResNeXt).
    node.NUM_GROUPS = 1
    node.WIDTH_PER_GROUP = 64
    # "FrozenBN", "BN", "SyncBN", "GN" or "".
    node.NORM = "FrozenBN"
    # Whether a block's stride is in its first 1x1 convolution (MSRA's weights) or in the 3x3 one (torchvision's).
    node.STRIDE_IN_1X1 = True
    # Dilation of res5; its stride becomes 1 when this is 2.
    node.RES5_DILATION = 1
    # Output channels of the stem and of res2; each later stage doubles.
    node.RES2_OUT_CHANNELS = 256
    node.STEM_OUT_CHANNELS = 64
    # Deformable convolutions in the stages res2 to res5.
    node.DEFORM_ON_PER_STAGE = [False, False, False, False]
    node.DEFORM_MODULATED = False
    node.DEFORM_NUM_GROUPS = 1
    return node


def _anchor_defaults() -> CN:
    node = CN()
    # Name in ANCHOR_GENERATOR_REGISTRY.
    node.NAME = "DefaultAnchorGenerator"
    # Square roots of the anchors' areas in pixels: one list per feature map, or one list for all of them.
    node.SIZES = [[32, 64, 128, 256, 512]]
    # Height over width; lists as in SIZES. Every size is combined with every ratio.
    node.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    # Degrees, counterclockwise (rotated anchors only).
    node.ANGLES = [[-90, 0, 90]]
    # Center of the first anchor, in strides, in [0, 1).
    node.OFFSET = 0.0
    return node


def _rpn_defaults() -> CN:
    node = CN()
    # Name in RPN_HEAD_REGISTRY.
    node.HEAD_NAME = "StandardRPNHead"
    # Names of the backbone's features that have anchors.
    node.IN_FEATURES = ["res4"]
    # Channels of the head's hidden 3x3 convolutions; -1: those of the features.
    node.CONV_DIMS = [-1]
    # Anchors that exceed the image by more than this many pixels are ignored in training; -1: no anchor is.
    node.BOUNDARY_THRESH = -1
    # An anchor whose highest IoU with a ground-truth box is below the first threshold is labeled 0 (background),
    # between the two -1 (ignored), from the second on 1 (object).
    node.IOU_THRESHOLDS = [0.3, 0.7]
    node.IOU_LABELS = [0, -1, 1]
    # Anchors per image that are sampled for the loss, and the maximum share of objects among them.
    node.BATCH_SIZE_PER_IMAGE = 256
    node.POSITIVE_FRACTION = 0.5
    # "smooth_l1" (beta below; 0 makes it L1), "giou", "diou" or "ciou"; box deltas are scaled by the weights (x, y,
    # w, h).
    node.BBOX_REG_LOSS_TYPE = "smooth_l1"
    node.BBOX_REG_LOSS_WEIGHT = 1.0
    node.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    node.SMOOTH_L1_BETA = 0.0
    # Factor of both losses.
    node.LOSS_WEIGHT = 1.0
    # Highest-scored proposals kept before suppression (per feature map and image) and after it (per image).
    node.PRE_NMS_TOPK_TRAIN = 12000
    node.PRE_NMS_TOPK_TEST = 6000
    node.POST_NMS_TOPK_TRAIN = 2000
    node.POST_NMS_TOPK_TEST = 1000
    # IoU above which the lower-scored of two proposals is suppressed.
    node.NMS_THRESH = 0.7
    return node
