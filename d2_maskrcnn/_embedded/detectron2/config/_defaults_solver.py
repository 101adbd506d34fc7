"""Defaults of ``SOLVER`` (optimizer and schedule) and ``TEST`` (evaluation)."""

from detectron2.config.config import CfgNode as CN


def solver_defaults() -> CN:
    """Return the node ``SOLVER``."""
    node = CN()
    # Length of the training, in iterations of IMS_PER_BATCH images (of all processes together).
    node.MAX_ITER = 40000
    node.IMS_PER_BATCH = 16
    # If not 0, the number of processes that this config was written for: the trainer scales batch size, learning rate
    # and durations to the actual number.
    node.REFERENCE_WORLD_SIZE = 0
    # Iterations between checkpoints.
    node.CHECKPOINT_PERIOD = 5000
    # Mixed precision.
    node.AMP = CN({"ENABLED": False})

    _add_optimizer_defaults(node)
    _add_schedule_defaults(node)
    return node


def _add_optimizer_defaults(node: CN) -> None:
    # Learning rate, and the factor by which it is multiplied for biases.
    node.BASE_LR = 0.001
    node.BIAS_LR_FACTOR = 1.0
    node.MOMENTUM = 0.9
    node.NESTEROV = False
    # Weight decay: of all parameters, of those of normalization layers, and of biases (None: as for all).
    node.WEIGHT_DECAY = 0.0001
    node.WEIGHT_DECAY_NORM = 0.0
    node.WEIGHT_DECAY_BIAS = None
    # Each parameter's gradient is clipped by "value" to [-CLIP_VALUE, CLIP_VALUE], or by "norm" (of order NORM_TYPE)
    # to at most CLIP_VALUE.
    node.CLIP_GRADIENTS = CN({"ENABLED": False})
    node.CLIP_GRADIENTS.CLIP_TYPE = "value"
    node.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    node.CLIP_GRADIENTS.NORM_TYPE = 2.0


def _add_schedule_defaults(node: CN) -> None:
    # "WarmupMultiStepLR" (times GAMMA at each of STEPS), "WarmupCosineLR" (down to BASE_LR_END),
    # "WarmupStepWithFixedGammaLR" (NUM_DECAYS equal steps).
    node.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    node.GAMMA = 0.1
    # Iterations, each less than MAX_ITER.
    node.STEPS = (30000,)
    node.BASE_LR_END = 0.0
    node.NUM_DECAYS = 3
    # The learning rate starts at WARMUP_FACTOR times its value and reaches it after WARMUP_ITERS, "linear" or
    # "constant".
    node.WARMUP_FACTOR = 0.001
    node.WARMUP_ITERS = 1000
    node.WARMUP_METHOD = "linear"
    # Whether the schedule is compressed into the time after the warm-up, instead of losing its first part to it.
    node.RESCALE_INTERVAL = False


def test_defaults() -> CN:
    """Return the node ``TEST``."""
    node = CN()
    # Iterations between evaluations in training; 0: at its end only.
    node.EVAL_PERIOD = 0
    # Maximum number of detections per image.
    node.DETECTIONS_PER_IMAGE = 100
    # [[task, metric, value, tolerance], ...]: an evaluation that differs by more ends with an error.
    node.EXPECTED_RESULTS = []
    # COCO's sigma of each keypoint; empty: the 17 standard ones.
    node.KEYPOINT_OKS_SIGMAS = []
    # Test-time augmentation: lengths of the shortest side, maximum of the longest side, and whether images are flipped.
    node.AUG = CN({"ENABLED": False})
    node.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    node.AUG.MAX_SIZE = 4000
    node.AUG.FLIP = True
    # Whether batch-normalization statistics are recomputed from NUM_ITER batches before each evaluation.
    node.PRECISE_BN = CN({"ENABLED": False})
    node.PRECISE_BN.NUM_ITER = 200
    return node
