"""Defaults of ``MODEL``: the whole, the backbone, the anchors and the region proposal network."""

from detectron2.config.config import CfgNode as CN


def model_defaults() -> CN:
    """The node ``MODEL`` without the nodes of its heads."""
    node = CN()
    # What the model runs on: "cuda", "cpu" or any other torch device.
    node.DEVICE = "cuda"
    # Name in META_ARCH_REGISTRY.
    node.META_ARCHITECTURE = "GeneralizedRCNN"
    # Weights to start from: a path or an address (https://, detectron2://). Empty: random weights.
    node.WEIGHTS = ""
    # Which optional parts an R-CNN has.
    node.MASK_ON = False
    node.KEYPOINT_ON = False
    node.LOAD_PROPOSALS = False
    # Images of INPUT.FORMAT in [0, 255] become (x - PIXEL_MEAN) / PIXEL_STD, channel by channel. These are
    # ImageNet's means in BGR; the standard deviation of 1 goes with Caffe2's ImageNet weights, which hold it
    # themselves.
    node.PIXEL_MEAN = [103.530, 116.280, 123.675]
    node.PIXEL_STD = [1.0, 1.0, 1.0]

    node.BACKBONE = _backbone_defaults()
    node.FPN = _fpn_defaults()
    node.RESNETS = _resnet_defaults()
    node.ANCHOR_GENERATOR = _anchor_defaults()
    node.PROPOSAL_GENERATOR = CN()
    # Name in PROPOSAL_GENERATOR_REGISTRY, or "PrecomputedProposals".
    node.PROPOSAL_GENERATOR.NAME = "RPN"
    # Proposals with a side of this many pixels (of the network's input) or less are dropped.
    node.PROPOSAL_GENERATOR.MIN_SIZE = 0
    node.RPN = _rpn_defaults()
    return node


def _backbone_defaults() -> CN:
    node = CN()
    # Name in BACKBONE_REGISTRY.
    node.NAME = "build_resnet_backbone"
    # How many stages, the stem counted as the first, keep their initial weights in training. 0: all learn.
    node.FREEZE_AT = 2
    return node


def _fpn_defaults() -> CN:
    node = CN()
    # Names of the bottom-up features that the pyramid is built on, e.g. ["res2", "res3", "res4", "res5"].
    node.IN_FEATURES = []
    node.OUT_CHANNELS = 256
    # Normalisation of the lateral and output convolutions; empty: none.
    node.NORM = ""
    # How a lateral and a top-down feature become one: "sum" or "avg".
    node.FUSE_TYPE = "sum"
    return node


def _resnet_defaults() -> CN:
    node = CN()
    # 18, 34, 50, 101 or 152 layers.
    node.DEPTH = 50
    # Features to give out: of "stem", "res2", "res3", "res4", "res5".
    node.OUT_FEATURES = ["res4"]
    # Groups of the 3x3 convolutions, and channels of each group in res2 (1 x 64: ResNet; 32 x 8: ResNeXt).
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
    # Square roots of the anchors' areas in pixels: one list for each feature map, or one list for all of them.
    node.SIZES = [[32, 64, 128, 256, 512]]
    # Height over width; lists as in SIZES. Every size is combined with every ratio.
    node.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    # Degrees, counter-clockwise (rotated anchors only).
    node.ANGLES = [[-90, 0, 90]]
    # Where the first anchor's centre lies, in strides, in [0, 1).
    node.OFFSET = 0.0
    return node


def _rpn_defaults() -> CN:
    node = CN()
    # Name in RPN_HEAD_REGISTRY.
    node.HEAD_NAME = "StandardRPNHead"
    # Names of the backbone's features that anchors lie on.
    node.IN_FEATURES = ["res4"]
    # Channels of the head's hidden 3x3 convolutions; -1: as many as the features have.
    node.CONV_DIMS = [-1]
    # Anchors that leave the image by more than this many pixels are ignored in training; -1: none is.
    node.BOUNDARY_THRESH = -1
    # An anchor whose best IoU with a ground-truth box is below the first threshold is labelled 0 (background),
    # between the two -1 (ignored), from the second on 1 (object).
    node.IOU_THRESHOLDS = [0.3, 0.7]
    node.IOU_LABELS = [0, -1, 1]
    # Anchors of each image that the loss is computed from, and the largest part of them that may be objects.
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
    # Highest-scored proposals kept before suppression (of each feature map and image) and after it (of each image).
    node.PRE_NMS_TOPK_TRAIN = 12000
    node.PRE_NMS_TOPK_TEST = 6000
    node.POST_NMS_TOPK_TRAIN = 2000
    node.POST_NMS_TOPK_TEST = 1000
    # IoU above which the lower-scored of two proposals is suppressed.
    node.NMS_THRESH = 0.7
    return node
