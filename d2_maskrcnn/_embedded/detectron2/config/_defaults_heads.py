"""Defaults of the heads in ``MODEL``."""

from detectron2.config.config import CfgNode as CN

# Box deltas (x, y, w, h) are multiplied by these, so that the targets have about unit variance.
_RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def add_roi_head_defaults(model: CN) -> None:
    """Add the nodes of the heads that classify proposals and predict their boxes, masks and keypoints."""
    model.ROI_HEADS = _roi_heads_defaults()
    model.ROI_BOX_HEAD = _box_head_defaults()
    model.ROI_BOX_CASCADE_HEAD = _cascade_defaults()
    model.ROI_MASK_HEAD = _mask_head_defaults()
    model.ROI_KEYPOINT_HEAD = _keypoint_head_defaults()


def add_dense_head_defaults(model: CN) -> None:
    """Add the nodes of semantic and panoptic segmentation and of RetinaNet."""
    model.SEM_SEG_HEAD = _sem_seg_defaults()
    model.PANOPTIC_FPN = _panoptic_defaults()
    model.RETINANET = _retinanet_defaults()


def _roi_heads_defaults() -> CN:
    node = CN()
    # Name in ROI_HEADS_REGISTRY.
    node.NAME = "Res5ROIHeads"
    # Number of categories, without the background.
    node.NUM_CLASSES = 80
    # Names of the backbone's features that proposals are pooled from.
    node.IN_FEATURES = ["res4"]
    # Proposals whose highest IoU with a ground-truth box reaches the threshold are labeled 1 (object), the others 0
    # (background).
    node.IOU_THRESHOLDS = [0.5]
    node.IOU_LABELS = [0, 1]
    # Proposals per image that are sampled for the losses, and the maximum share of objects among them.
    node.BATCH_SIZE_PER_IMAGE = 512
    node.POSITIVE_FRACTION = 0.25
    # Whether ground-truth boxes are added to the proposals in training.
    node.PROPOSAL_APPEND_GT = True
    # Detections with scores up to this, in [0, 1], are removed.
    node.SCORE_THRESH_TEST = 0.05
    # IoU above which the lower-scored of two detections of one category is suppressed.
    node.NMS_THRESH_TEST = 0.5
    return node


def _add_pooler_defaults(node: CN) -> None:
    # Bins along each side of a pooled proposal.
    node.POOLER_RESOLUTION = 14
    # Samples along each side of a bin; 0: one per feature pixel that it covers, rounded up.
    node.POOLER_SAMPLING_RATIO = 0
    # "ROIAlignV2" (pixel centers at half-integer coordinates), "ROIAlign" (at integers) or "ROIPool".
    node.POOLER_TYPE = "ROIAlignV2"


def _box_head_defaults() -> CN:
    node = CN()
    # Name in ROI_BOX_HEAD_REGISTRY.
    node.NAME = ""
    # "smooth_l1" (beta below; 0 makes it L1), "giou", "diou" or "ciou".
    node.BBOX_REG_LOSS_TYPE = "smooth_l1"
    node.BBOX_REG_LOSS_WEIGHT = 1.0
    node.BBOX_REG_WEIGHTS = _BOX_HEAD_WEIGHTS
    node.SMOOTH_L1_BETA = 0.0
    _add_pooler_defaults(node)
    # Convolutions, then fully connected layers, and their widths.
    node.NUM_CONV = 0
    node.CONV_DIM = 256
    node.NUM_FC = 0
    node.FC_DIM = 1024
    # Normalization of the convolutions; empty: none.
    node.NORM = ""
    # One box for all categories instead of one per category.
    node.CLS_AGNOSTIC_BBOX_REG = False
    # Whether the mask head is trained on predicted boxes instead of proposals.
    node.TRAIN_ON_PRED_BOXES = False
    # Sigmoid instead of softmax classification, and the federated loss, which samples FED_LOSS_NUM_CLASSES categories
    # with probability ~ (number of images) ** FED_LOSS_FREQ_WEIGHT_POWER.
    node.USE_SIGMOID_CE = False
    node.USE_FED_LOSS = False
    node.FED_LOSS_FREQ_WEIGHT_POWER = 0.5
    node.FED_LOSS_NUM_CLASSES = 50
    return node


def _cascade_defaults() -> CN:
    node = CN()
    # One entry per stage.
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
    # One mask for all categories instead of one per category.
    node.CLS_AGNOSTIC_MASK = False
    return node


def _keypoint_head_defaults() -> CN:
    node = CN()
    node.NAME = "KRCNNConvDeconvUpsampleHead"
    _add_pooler_defaults(node)
    node.CONV_DIMS = (512,) * 8
    node.NUM_KEYPOINTS = 17
    # Images with fewer visible keypoints are not used in training.
    node.MIN_KEYPOINTS_PER_IMAGE = 1
    # Whether the loss is divided by the number of visible keypoints, instead of that of a full batch.
    node.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = True
    node.LOSS_WEIGHT = 1.0
    return node


def _sem_seg_defaults() -> CN:
    node = CN()
    node.NAME = "SemSegFPNHead"
    node.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Pixels of this label are ignored.
    node.IGNORE_VALUE = 255
    node.NUM_CLASSES = 54
    node.CONVS_DIM = 128
    # All features are resampled to this stride.
    node.COMMON_STRIDE = 4
    node.NORM = "GN"
    node.LOSS_WEIGHT = 1.0
    return node


def _panoptic_defaults() -> CN:
    node = CN()
    node.INSTANCE_LOSS_WEIGHT = 1.0
    # Merging of instances and stuff: instances below the confidence, or covered by more than the overlap, and stuff
    # regions below the area (in pixels) are removed.
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
    # Initial score of the classifier.
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
