"""Config keys of this plugin, all under one node of our own: ``D2_MASKRCNN``.

Detectron2's own keys keep their meaning; nothing is added to nodes that belong to it.
"""

import functools
from typing import Any

from detectron2.config import CfgNode

# Detectron2's key -> the name that this plugin's component has in Detectron2's registry.
COMPONENTS = {
    "MODEL.META_ARCHITECTURE": "MaskRCNN",
    "MODEL.BACKBONE.NAME": "build_maskrcnn_resnet_fpn_backbone",
    "MODEL.ANCHOR_GENERATOR.NAME": "MaskRCNNAnchorGenerator",
    "MODEL.PROPOSAL_GENERATOR.NAME": "MaskRCNNRPN",
    "MODEL.RPN.HEAD_NAME": "MaskRCNNRPNHead",
    "MODEL.ROI_HEADS.NAME": "MaskRCNNROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "MaskRCNNBoxHead",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNMaskHead",
}

# Earlier name of a key -> its name now. Files and command lines that use the earlier one keep working.
RENAMED_KEYS = {
    "D2_MASKRCNN.INSPECT.PICTURES": "D2_MASKRCNN.INSPECT.IMAGES",
    "D2_MASKRCNN.WANDB.NUM_PICTURES": "D2_MASKRCNN.WANDB.NUM_IMAGES",
}


def add_d2_maskrcnn_config(cfg: CfgNode) -> None:
    """Adds the node ``D2_MASKRCNN`` with its defaults to ``cfg``, in place.

    Call it after ``get_cfg()`` and before ``merge_from_file``.
    """
    node = cfg.D2_MASKRCNN = CfgNode()

    # Convolutions run on channels-last (NHWC) memory: faster on CPUs and on tensor cores, same results to rounding.
    node.CHANNELS_LAST = True

    # Your own COCO-format data without writing Python. Paths are relative to the working directory or, where not found
    # there, to $DETECTRON2_DATASETS (default: datasets). A pair that is set takes the place of DATASETS.TRAIN or .TEST.
    node.DATA = CfgNode()
    node.DATA.TRAIN_JSON = ""
    node.DATA.TRAIN_IMAGES = ""
    node.DATA.VAL_JSON = ""
    node.DATA.VAL_IMAGES = ""

    node.RESNETS = CfgNode()
    # Start the last normalisation of every residual block at zero, so that the block begins as the identity (Goyal et
    # al., "Accurate, large minibatch SGD", 2017, section 5.1). For training from scratch with BN, SyncBN or GN.
    node.RESNETS.ZERO_INIT_RESIDUAL = False

    node.SOLVER = CfgNode()
    # "SGD" (momentum and Nesterov as in SOLVER) or "AdamW" (decoupled weight decay).
    node.SOLVER.OPTIMIZER = "SGD"
    # Parts that each process computes its share of a batch in, one after the other: 1 is all at once. Batch size and
    # result stay (exactly, without BN and for images of one size); memory falls.
    node.SOLVER.ACCUMULATE = 1
    # L2 norm over all weights that the gradient is scaled down to. The default is above the norms of a sound training:
    # only outliers are clipped. 0.0 leaves the gradient alone. Its norm is measured and logged as grad_norm anyway.
    node.SOLVER.MAX_GRAD_NORM = 35.0
    # dtype of the forward pass where SOLVER.AMP.ENABLED: "float16", "bfloat16" or "auto" (float16 on CUDA, bfloat16 on
    # CPUs, which have no other).
    node.SOLVER.AMP_DTYPE = "auto"
    # Batch size that SOLVER.BASE_LR was chosen for; another IMS_PER_BATCH scales the rate, in proportion (SGD) or by
    # the square root (AdamW). 0 never scales.
    node.SOLVER.REFERENCE_BATCH = 0

    # Iterations between two lines of the log and two points in TensorBoard and metrics.json.
    node.LOG_PERIOD = 20

    # What TensorBoard shows at the end of every epoch: histograms of weights and gradients, and IMAGES images of
    # the first test set with their anchors, proposals, refined boxes, masks and results of at least SCORE_THRESHOLD.
    # Epochs are left out so that it takes no more than MAX_SHARE (in [0, 1]) of the training's time.
    node.INSPECT = CfgNode()
    node.INSPECT.ENABLED = True
    node.INSPECT.HISTOGRAMS = True
    node.INSPECT.IMAGES = 1
    node.INSPECT.SCORE_THRESHOLD = 0.5
    node.INSPECT.MAX_SHARE = 0.02

    # The losses on DATASETS.TEST, in evaluation mode, at each evaluation.
    node.VALIDATION_LOSS = True

    # model_best.pth: the checkpoint with the best METRIC (any number that an evaluation gives, such as bbox/AP,
    # segm/AP-<class>, validation/total_loss, ema/segm/AP). MODE: "max" or "min".
    node.BEST_CHECKPOINT = CfgNode()
    node.BEST_CHECKPOINT.ENABLED = True
    node.BEST_CHECKPOINT.METRIC = "segm/AP"
    node.BEST_CHECKPOINT.MODE = "max"

    # Ends the training after PATIENCE evaluations in a row without a METRIC better by more than MIN_DELTA (in the
    # metric's unit, percent for AP). PATIENCE 0 never does.
    node.EARLY_STOPPING = CfgNode()
    node.EARLY_STOPPING.PATIENCE = 0
    node.EARLY_STOPPING.MIN_DELTA = 0.0
    node.EARLY_STOPPING.METRIC = "segm/AP"
    node.EARLY_STOPPING.MODE = "max"

    # Moving average of the weights, evaluated (ema/...) and saved beside them. DECAY in [0, 1).
    node.EMA = CfgNode()
    node.EMA.ENABLED = False
    node.EMA.DECAY = 0.9998

    # Beside COCO's numbers: figures of confusion, precision and recall, and AP by class, in OUTPUT_DIR/inference,
    # TensorBoard and W&B. The confusion matrix takes detections of this score that overlap by this IoU, both in [0, 1].
    node.EVALUATION = CfgNode()
    node.EVALUATION.FIGURES = True
    node.EVALUATION.CONFUSION_IOU = 0.5
    node.EVALUATION.CONFUSION_SCORE = 0.5

    node.INPUT = CfgNode()
    # Large-scale jitter in place of INPUT's resizing: scales relative to a square of IMAGE_SIZE pixels.
    node.INPUT.LSJ = CfgNode()
    node.INPUT.LSJ.ENABLED = False
    node.INPUT.LSJ.IMAGE_SIZE = 1024
    node.INPUT.LSJ.MIN_SCALE = 0.1
    node.INPUT.LSJ.MAX_SCALE = 2.0
    # Pastes objects of another image, in this share of the images. Needs INPUT.MASK_FORMAT bitmask.
    node.INPUT.COPY_PASTE = CfgNode()
    node.INPUT.COPY_PASTE.ENABLED = False
    node.INPUT.COPY_PASTE.PROBABILITY = 0.5

    # Weights & Biases (pip install "d2_maskrcnn[wandb]"). Where it is missing or unreachable, training goes on without.
    node.WANDB = CfgNode()
    node.WANDB.ENABLED = False
    node.WANDB.PROJECT = "d2_maskrcnn"
    node.WANDB.ENTITY = ""
    node.WANDB.NAME = ""
    node.WANDB.GROUP = ""
    node.WANDB.TAGS = []
    node.WANDB.NOTES = ""
    # "online", "offline" (files only; `wandb sync` sends them later) or "disabled".
    node.WANDB.MODE = "online"
    # Folder of the run's files; OUTPUT_DIR if empty.
    node.WANDB.DIR = ""
    # The best checkpoint as an artifact: "none", "end" (once, when training ends) or "all" (each new best).
    node.WANDB.LOG_MODEL = "end"
    # Histograms of "gradients", "parameters" or "all" every WATCH_PERIOD iterations; "" for none.
    node.WANDB.WATCH = ""
    node.WANDB.WATCH_PERIOD = 1000
    # Images of the first test set at each evaluation, with predictions of at least this score.
    node.WANDB.NUM_IMAGES = 8
    node.WANDB.SCORE_THRESHOLD = 0.5


def plugin_node(cfg: CfgNode) -> CfgNode:
    """Return the node ``D2_MASKRCNN`` of ``cfg``, or one with its defaults where a config of Detectron2 has none."""
    if "D2_MASKRCNN" in cfg:
        return cfg.D2_MASKRCNN
    defaults = CfgNode()
    add_d2_maskrcnn_config(defaults)
    return defaults.D2_MASKRCNN


def get_value(cfg: CfgNode, key: str) -> Any:
    """Return the value under a dotted key.

    >>> from detectron2.config import get_cfg
    >>> get_value(get_cfg(), "MODEL.RPN.NMS_THRESH")
    0.7

    Raises:
        KeyError: ``cfg`` has no such key.
    """
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)


def use_d2_maskrcnn_components(cfg: CfgNode) -> None:
    """Replaces Detectron2's component names in ``cfg`` by this plugin's, in place.

    So a config of Detectron2's model zoo (say ``mask_rcnn_R_101_FPN_3x.yaml``) builds this plugin's model; every number
    in it is kept, and so are the names of the parameters.
    """
    cfg.merge_from_list([item for pair in COMPONENTS.items() for item in pair])
