"""Defaults of ``MODEL``: the heads that work on regions, and those that work on whole feature maps."""

from detectron2.config.config import CfgNode as CN

# Box deltas (x, y, w, h) are multiplied by these, so that the targets have about unit variance.
_RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def add_roi_head_defaults(model: CN) -> None:
    """Adds the nodes of the heads that classify regions and find their boxes, masks and keypoints."""
    model.ROI_HEADS = _roi_heads_defaults()
    model.ROI_BOX_HEAD = _box_head_defaults()
    model.ROI_BOX_CASCADE_HEAD = _cascade_defaults()
    model.ROI_MASK_HEAD = _mask_head_defaults()
    model.ROI_KEYPOINT_HEAD = _keypoint_head_defaults()


def add_dense_head_defaults(model: CN) -> None:
    """Adds the nodes of semantic and panoptic segmentation and of RetinaNet."""
    model.SEM_SEG_HEAD = _sem_seg_defaults()
    model.PANOPTIC_FPN = _panoptic_defaults()
    model.RETINANET = _retinanet_defaults()


def _roi_heads_defaults() -> CN:
    node = CN()
    # Name in ROI_HEADS_REGISTRY.
    node.NAME = "Res5ROIHeads"
    # Categories, the background not counted.
    node.NUM_CLASSES = 80
    # Names of the backbone's features that regions are pooled from.
    node.IN_FEATURES = ["res4"]
    # Proposals whose best IoU with a ground-truth box reaches the threshold are labelled 1 (object), the others 0
    # (background).
    node.IOU_THRESHOLDS = [0.5]
    node.IOU_LABELS = [0, 1]
    # Proposals of each image that the losses are computed from, and the largest part of them that may be objects.
    node.BATCH_SIZE_PER_IMAGE = 512
    node.POSITIVE_FRACTION = 0.25
    # Ground-truth boxes join the proposals in training.
    node.PROPOSAL_APPEND_GT = True
    # Detections scored at or below this are dropped, in [0, 1].
    node.SCORE_THRESH_TEST = 0.05
    # IoU above which the lower-scored of two detections of one category is suppressed.
    node.NMS_THRESH_TEST = 0.5
    return node


def _add_pooler_defaults(node: CN) -> None:
    # Bins along each side of a pooled region.
    node.POOLER_RESOLUTION = 14
    # Samples along each side of a bin; 0: as many as the bin has pixels, rounded up.
    node.POOLER_SAMPLING_RATIO = 0
    # "ROIAlignV2" (pixel centres at half-integer coordinates), "ROIAlign" (at integers) or "ROIPool".
    node.POOLER_TYPE = "ROIAlignV2"


def _box_head_defaults() -> CN:
    node = CN()
    # Name in ROI_BOX_HEAD_REGISTRY; used by heads that have a box head of their own.
    node.NAME = ""
    # "smooth_l1" (beta below; 0 makes it L1), "giou", "diou" or "ciou".
    node.BBOX_REG_LOSS_TYPE = "smooth_l1"
    node.BBOX_REG_LOSS_WEIGHT = 1.0
    node.BBOX_REG_WEIGHTS = _BOX_HEAD_WEIGHTS
    node.SMOOTH_L1_BETA = 0.0
    _add_pooler_defaults(node)
    # Convolutions, then fully connected layers, with their widths.
    node.NUM_CONV = 0
    node.CONV_DIM = 256
    node.NUM_FC = 0
    node.FC_DIM = 1024
    # Normalisation of the convolutions; empty: none.
    node.NORM = ""
    # One box for all categories instead of one for each.
    node.CLS_AGNOSTIC_BBOX_REG = False
    # The mask head learns from predicted boxes instead of proposals.
    node.TRAIN_ON_PRED_BOXES = False
    # Sigmoid instead of softmax classification, and the federated loss that draws FED_LOSS_NUM_CLASSES categories for
    # each image with probability ~ (number of images) ** FED_LOSS_FREQ_WEIGHT_POWER.
    node.USE_SIGMOID_CE = False
    node.USE_FED_LOSS = False
    node.FED_LOSS_FREQ_WEIGHT_POWER = 0.5
    node.FED_LOSS_NUM_CLASSES = 50
    return node


def _cascade_defaults() -> CN:
    node = CN()
    # One entry for each stage.
    node.BBOX_REG_WEIGHTS = (_BOX_HEAD_WEIGHTS, (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    node.IOUS = (0.5, 0.6, 0.7)
    return node


def _mask_head_defaults() -> CN:
    node = CN()
    # Name in ROI_MASK_HEAD_REGISTRY.
    node.NAME = "MaskRCNNConvUpsampleHead"
    _add_pooler_defaults(node)
    # 3x3 convolutions before the upsampling, and their width (also that of the upsampling).
    node.NUM_CONV = 0
    node.CONV_DIM = 256
    node.NORM = ""
    # One mask for all categories instead of one for each.
    node.CLS_AGNOSTIC_MASK = False
    return node


def _keypoint_head_defaults() -> CN:
    node = CN()
    node.NAME = "KRCNNConvDeconvUpsampleHead"
    _add_pooler_defaults(node)
    node.CONV_DIMS = (512,) * 8
    node.NUM_KEYPOINTS = 17
    # Images with fewer visible keypoints than this are left out of training.
    node.MIN_KEYPOINTS_PER_IMAGE = 1
    # The loss is divided by the visible keypoints of the batch, or by the number that a full batch would have.
    node.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = True
    node.LOSS_WEIGHT = 1.0
    return node


def _sem_seg_defaults() -> CN:
    node = CN()
    node.NAME = "SemSegFPNHead"
    node.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Pixels of this label count for nothing.
    node.IGNORE_VALUE = 255
    node.NUM_CLASSES = 54
    node.CONVS_DIM = 128
    # All features are brought to this stride.
    node.COMMON_STRIDE = 4
    node.NORM = "GN"
    node.LOSS_WEIGHT = 1.0
    return node


def _panoptic_defaults() -> CN:
    node = CN()
    node.INSTANCE_LOSS_WEIGHT = 1.0
    # How instances and regions of stuff become one map: an instance is dropped below the confidence, or when more
    # than the overlap is covered already; regions of stuff below the area (in pixels) are dropped too.
    node.COMBINE = CN({"ENABLED": True})
    node.COMBINE.OVERLAP_THRESH = 0.5
    node.COMBINE.STUFF_AREA_LIMIT = 4096
    node.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.5
    return node


def _retinanet_defaults() -> CN:
    node = CN()
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.NUM_CONVS = 4
    node.NORM = ""
    # Anchor labels, as in MODEL.RPN.
    node.IOU_THRESHOLDS = [0.4, 0.5]
    node.IOU_LABELS = [0, -1, 1]
    # The score that a fresh classifier gives everywhere.
    node.PRIOR_PROB = 0.01
    node.SCORE_THRESH_TEST = 0.05
    node.TOPK_CANDIDATES_TEST = 1000
    node.NMS_THRESH_TEST = 0.5
    node.BBOX_REG_WEIGHTS = _RPN_WEIGHTS
    node.BBOX_REG_LOSS_TYPE = "smooth_l1"
    node.SMOOTH_L1_LOSS_BETA = 0.1
    node.FOCAL_LOSS_GAMMA = 2.0
    node.FOCAL_LOSS_ALPHA = 0.25
    return node
