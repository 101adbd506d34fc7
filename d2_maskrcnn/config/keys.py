"""Define the config keys of this plugin, all under ``D2_MASKRCNN``; Detectron2's own keys keep their meaning."""

import functools
from typing import Any

from detectron2.config import CfgNode

# Detectron2's key -> name of this plugin's component in Detectron2's registry.
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

# Earlier name of a key -> its present name. Earlier names are still accepted, with a warning.
RENAMED_KEYS = {
    "D2_MASKRCNN.INSPECT.PICTURES": "D2_MASKRCNN.INSPECT.IMAGES",
    "D2_MASKRCNN.WANDB.NUM_PICTURES": "D2_MASKRCNN.WANDB.NUM_IMAGES",
}


def add_d2_maskrcnn_config(cfg: CfgNode) -> None:
    """Add the node ``D2_MASKRCNN`` with its defaults to ``cfg``, in place.

    Call it after ``get_cfg()`` and before ``merge_from_file``.
    """
    cfg.D2_MASKRCNN = CfgNode()
    for add in (_add_data_and_model, _add_solver, _add_evaluation, _add_logging):
        add(cfg.D2_MASKRCNN)


def _add_data_and_model(node: CfgNode) -> None:
    # Your own COCO-format data, without writing Python. Paths are relative to the working directory or, if missing
    # there, to $DETECTRON2_DATASETS (default: datasets). A pair replaces DATASETS.TRAIN or DATASETS.TEST.
    node.DATA = CfgNode()
    node.DATA.TRAIN_JSON = ""
    node.DATA.TRAIN_IMAGES = ""
    node.DATA.VAL_JSON = ""
    node.DATA.VAL_IMAGES = ""

    node.INPUT = CfgNode()
    # Large-scale jitter instead of INPUT's resizing; scales are relative to a square of IMAGE_SIZE pixels.
    node.INPUT.LSJ = CfgNode()
    node.INPUT.LSJ.ENABLED = False
    node.INPUT.LSJ.IMAGE_SIZE = 1024
    node.INPUT.LSJ.MIN_SCALE = 0.1
    node.INPUT.LSJ.MAX_SCALE = 2.0
    # Paste objects of another image, with this probability. Needs INPUT.MASK_FORMAT bitmask.
    node.INPUT.COPY_PASTE = CfgNode()
    node.INPUT.COPY_PASTE.ENABLED = False
    node.INPUT.COPY_PASTE.PROBABILITY = 0.5

    # Run convolutions on channels-last (NHWC) memory: faster on CPUs and tensor cores, equal results up to rounding.
    node.CHANNELS_LAST = True

    node.INFERENCE = CfgNode()
    # Type of the weights and activations in prediction and evaluation: "float32", "bfloat16", "float16" (GPUs only) or
    # "auto" (a half precision where the device computes in it natively). Boxes and scores stay float32.
    node.INFERENCE.PRECISION = "float32"
    # Predict images by square tiles of TILE pixels a side (0: as a whole) that share OVERLAP, in [0, 0.9].
    # Used by Predictor, predictions and evaluations of a checkpoint, not by evaluations during training.
    node.INFERENCE.TILE = 0
    node.INFERENCE.OVERLAP = 0.2
    # Compute wide 3x3 convolutions by Winograd's algorithm where that is faster (x86 CPUs, float32). Its rounding error
    # is about three times that of a direct convolution: 2e-6 of a layer's output. In evaluation mode; see also SOLVER.
    node.INFERENCE.WINOGRAD = True

    node.RESNETS = CfgNode()
    # Initialize the last normalization of every residual block to 0, so that the block starts as the identity (Goyal
    # et al., "Accurate, large minibatch SGD", 2017, section 5.1). For training from scratch with BN, SyncBN or GN.
    node.RESNETS.ZERO_INIT_RESIDUAL = False


def _add_solver(node: CfgNode) -> None:
    node.SOLVER = CfgNode()
    # "SGD" (momentum and Nesterov as in SOLVER) or "AdamW" (decoupled weight decay).
    node.SOLVER.OPTIMIZER = "SGD"
    # Micro-batches that each process splits its share of a batch into, to save memory. Their losses are averaged, which
    # is close to the loss of the whole batch, see docs/training.md.
    node.SOLVER.ACCUMULATE = 1
    # Maximum L2 norm of the gradient over all weights; larger gradients are scaled down to it. The default clips only
    # outliers of a normal training; 0.0 does not clip. The norm is always logged as grad_norm.
    node.SOLVER.MAX_GRAD_NORM = 35.0
    # dtype of the forward pass with SOLVER.AMP.ENABLED: "float16", "bfloat16" or "auto" (float16 on CUDA, bfloat16 on
    # CPUs, which support no other).
    node.SOLVER.AMP_DTYPE = "auto"
    # As INFERENCE.WINOGRAD, for the forward and backward pass in training mode. The rounding error of the gradients is
    # 2e-6 as well.
    node.SOLVER.WINOGRAD = True
    # Keep few activations of the ResNet in training, and compute the others again in the backward pass: less memory,
    # more time, the same losses and gradients.
    node.SOLVER.ACTIVATION_CHECKPOINTING = False
    # Batch size that SOLVER.BASE_LR was chosen for. Another IMS_PER_BATCH scales the rate linearly (SGD) or by the
    # square root (AdamW). 0 does not scale.
    node.SOLVER.REFERENCE_BATCH = 0


def _add_evaluation(node: CfgNode) -> None:
    # Compute the losses on DATASETS.TEST, in evaluation mode, at each evaluation.
    node.VALIDATION_LOSS = True

    # Save the checkpoint with the best METRIC as model_best.pth. METRIC: any number of an evaluation, such as bbox/AP,
    # segm/AP-<class>, validation/total_loss, ema/segm/AP. MODE: "max" or "min".
    node.BEST_CHECKPOINT = CfgNode()
    node.BEST_CHECKPOINT.ENABLED = True
    node.BEST_CHECKPOINT.METRIC = "segm/AP"
    node.BEST_CHECKPOINT.MODE = "max"

    # Stop the training after PATIENCE consecutive evaluations that do not improve METRIC by more than MIN_DELTA (in the
    # metric's unit, percent for AP). PATIENCE 0 never stops it.
    node.EARLY_STOPPING = CfgNode()
    node.EARLY_STOPPING.PATIENCE = 0
    node.EARLY_STOPPING.MIN_DELTA = 0.0
    node.EARLY_STOPPING.METRIC = "segm/AP"
    node.EARLY_STOPPING.MODE = "max"

    # Also write model_final and model_best as .safetensors: weights alone, with the metadata of the checkpoint.
    node.SAFETENSORS = False

    # Exponential moving average of the weights, evaluated (ema/...) and saved beside them. DECAY in [0, 1).
    node.EMA = CfgNode()
    node.EMA.ENABLED = False
    node.EMA.DECAY = 0.9998

    # Draw the confusion matrix, precision-recall curves and AP per class: OUTPUT_DIR/inference, TensorBoard and W&B.
    # The confusion matrix counts detections of at least this score that match at this IoU, both in [0, 1].
    node.EVALUATION = CfgNode()
    node.EVALUATION.FIGURES = True
    node.EVALUATION.CONFUSION_IOU = 0.5
    node.EVALUATION.CONFUSION_SCORE = 0.5


def _add_logging(node: CfgNode) -> None:
    # Iterations between two log lines, and between two points in TensorBoard and metrics.json.
    node.LOG_PERIOD = 20

    # Show in TensorBoard at the end of every epoch: histograms of weights and gradients, and IMAGES images of the
    # first test set with their anchors, proposals, refined boxes, masks and results of at least SCORE_THRESHOLD.
    # Epochs are skipped to take at most MAX_SHARE (in [0, 1]) of the training's time.
    node.INSPECT = CfgNode()
    node.INSPECT.ENABLED = True
    node.INSPECT.HISTOGRAMS = True
    node.INSPECT.IMAGES = 1
    node.INSPECT.SCORE_THRESHOLD = 0.5
    node.INSPECT.MAX_SHARE = 0.02

    # Weights & Biases (pip install "d2_maskrcnn[wandb]"). If it is missing or unreachable, training continues without.
    node.WANDB = CfgNode()
    node.WANDB.ENABLED = False
    node.WANDB.PROJECT = "d2_maskrcnn"
    node.WANDB.ENTITY = ""
    node.WANDB.NAME = ""
    node.WANDB.GROUP = ""
    node.WANDB.TAGS = []
    node.WANDB.NOTES = ""
    # "online", "offline" (files only; upload them later with `wandb sync`) or "disabled".
    node.WANDB.MODE = "online"
    # Folder of the run's files; OUTPUT_DIR if empty.
    node.WANDB.DIR = ""
    # Upload the best checkpoint as an artifact: "none", "end" (once, after training) or "all" (each new best).
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
    """Replace Detectron2's component names in ``cfg`` by this plugin's, in place.

    A config of Detectron2's model zoo (such as ``mask_rcnn_R_101_FPN_3x.yaml``) then builds this plugin's model, with
    the same values and the same parameter names.
    """
    cfg.merge_from_list([item for pair in COMPONENTS.items() for item in pair])
