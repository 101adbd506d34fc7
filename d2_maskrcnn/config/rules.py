"""The range or the choices of every config key of Detectron2 and of this plugin.

The type of a value is that of its default. Upper limits are far above useful values: they catch typing errors that
would otherwise end in hours of waiting or in a full memory.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A condition on a value.

    Attributes:
        accepts: whether a value of the right type is allowed.
        expected: the condition in words, for messages.
    """

    accepts: Callable[[Any], bool]
    expected: str


def number(low: float, high: float, unit: str = "") -> Rule:
    """Accept numbers from ``low`` to ``high``, both included."""
    return Rule(lambda value: low <= value <= high, f"{low:,.10g} to {high:,.10g} {unit}".rstrip())


def choice(*names: object) -> Rule:
    """Accept one of a few values."""
    return Rule(lambda value: value in names, f"one of {', '.join(map(repr, names))}")


def each(rule: Rule, least: int = 1, most: int = 1000) -> Rule:
    """Accept lists of ``least`` to ``most`` values that ``rule`` accepts."""
    count = f"{least}" if least == most else f"{least} or more"
    return Rule(
        lambda values: (
            isinstance(values, list | tuple)
            and least <= len(values) <= most
            and all(_is_number(value) and rule.accepts(value) for value in values)
        ),
        f"a list of {count} numbers, each {rule.expected}",
    )


def lists_of(rule: Rule) -> Rule:
    """Accept lists of lists of values that ``rule`` accepts."""
    inner = each(rule)
    return Rule(
        lambda values: isinstance(values, list | tuple) and bool(values) and all(inner.accepts(v) for v in values),
        f"a list of lists of numbers, each {rule.expected}, such as [[32], [64]]",
    )


def increasing(rule: Rule) -> Rule:
    """Accept what the list rule accepts if its values increase."""
    return Rule(
        lambda values: rule.accepts(values) and list(values) == sorted(set(values)),
        f"{rule.expected}, in increasing order",
    )


def _is_expected_result(value: Any) -> bool:
    is_row = isinstance(value, list | tuple) and len(value) == 4
    return is_row and all(isinstance(part, str) for part in value[:2]) and all(map(_is_number, value[2:]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


MANY = 10**9
ITERATIONS = number(1, MANY, "iterations")
SHARE = number(0, 1)
WEIGHT = number(0, 1e6)
WIDTH = number(1, 65536, "channels")
PIXELS = number(1, 20000, "pixels")
NAMES = Rule(
    lambda values: isinstance(values, list | tuple) and all(isinstance(value, str) and value for value in values),
    "a list of names, such as ['a', 'b']",
)
EXPECTED_RESULTS = Rule(
    lambda values: isinstance(values, list | tuple) and all(map(_is_expected_result, values)),
    "a list of [task, metric, value, tolerance], such as [['segm', 'AP', 38.5, 0.2]]",
)
MODES = ("max", "min")
MODE = choice(*MODES)
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN")
NORM = choice(*NORMS)
BOX_LOSS = choice("smooth_l1", "giou", "diou", "ciou")
BOX_WEIGHTS = each(number(1e-6, 1e6), 4, 4)
LABELS = each(choice(-1, 0, 1))
THRESHOLDS = increasing(each(SHARE))
POOLER = {
    "POOLER_RESOLUTION": number(1, 256, "bins per side"),
    "POOLER_SAMPLING_RATIO": number(0, 64, "samples per bin and axis (0: by the size of the box)"),
    "POOLER_TYPE": choice("ROIAlign", "ROIAlignV2"),
    "NUM_CONV": number(0, 32, "layers"),
    "CONV_DIM": WIDTH,
    "NORM": NORM,
}
BOX_LOSS_KEYS = {
    "BBOX_REG_LOSS_TYPE": BOX_LOSS,
    "BBOX_REG_LOSS_WEIGHT": WEIGHT,
    "BBOX_REG_WEIGHTS": BOX_WEIGHTS,
    "SMOOTH_L1_BETA": WEIGHT,
}
MATCHING = {
    "IOU_THRESHOLDS": THRESHOLDS,
    "IOU_LABELS": LABELS,
    "BATCH_SIZE_PER_IMAGE": number(1, 100_000, "boxes"),
    "POSITIVE_FRACTION": SHARE,
}
BEST = {"MODE": MODE}
PRECISIONS = ("float32", "bfloat16", "float16", "auto")

_TREE: dict[str, Any] = {
    "MODEL": {
        "PIXEL_MEAN": each(number(-1e6, 1e6)),
        "PIXEL_STD": each(number(1e-6, 1e6)),
        "BACKBONE": {"FREEZE_AT": number(0, 5, "stages")},
        "FPN": {"IN_FEATURES": NAMES, "OUT_CHANNELS": WIDTH, "NORM": NORM, "FUSE_TYPE": choice("sum", "avg")},
        "RESNETS": {
            "OUT_FEATURES": NAMES,
            "DEPTH": choice(50, 101, 152),
            "NUM_GROUPS": number(1, 1024, "groups"),
            "WIDTH_PER_GROUP": WIDTH,
            "NORM": NORM,
            "RES5_DILATION": choice(1, 2),
            "RES2_OUT_CHANNELS": WIDTH,
            "STEM_OUT_CHANNELS": WIDTH,
        },
        "ANCHOR_GENERATOR": {
            "SIZES": lists_of(number(1, 1e5, "pixels")),
            "ASPECT_RATIOS": lists_of(number(1e-3, 1e3)),
            "OFFSET": number(0, 0.999999),
        },
        "PROPOSAL_GENERATOR": {"MIN_SIZE": number(0, 20000, "pixels")},
        "RPN": {
            "IN_FEATURES": NAMES,
            **MATCHING,
            **BOX_LOSS_KEYS,
            "CONV_DIMS": each(number(-1, 65536, "channels")),
            "BOUNDARY_THRESH": number(-1, 20000, "pixels"),
            "LOSS_WEIGHT": WEIGHT,
            **{f"{w}_NMS_TOPK_{m}": number(1, 10**6) for w in ("PRE", "POST") for m in ("TRAIN", "TEST")},
            "NMS_THRESH": SHARE,
        },
        "ROI_HEADS": {
            "IN_FEATURES": NAMES,
            **MATCHING,
            "NUM_CLASSES": number(1, 100_000, "classes"),
            "SCORE_THRESH_TEST": SHARE,
            "NMS_THRESH_TEST": SHARE,
        },
        "ROI_BOX_HEAD": {**POOLER, **BOX_LOSS_KEYS, "NUM_FC": number(0, 32, "layers"), "FC_DIM": WIDTH},
        "ROI_MASK_HEAD": POOLER,
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": each(PIXELS),
        "MIN_SIZE_TRAIN_SAMPLING": choice("choice", "range"),
        "MAX_SIZE_TRAIN": number(1, 100_000, "pixels"),
        "MIN_SIZE_TEST": number(0, 20000, "pixels (0 does not resize)"),
        "MAX_SIZE_TEST": number(1, 100_000, "pixels"),
        "RANDOM_FLIP": choice("horizontal", "vertical", "none"),
        "CROP": {
            "TYPE": choice("relative", "relative_range", "absolute", "absolute_range"),
            "SIZE": each(number(1e-6, 20000), 2, 2),
        },
        "FORMAT": choice("BGR", "RGB", "RAW"),
        "MASK_FORMAT": choice("polygon", "bitmask"),
    },
    "DATASETS": {
        "TRAIN": NAMES,
        "TEST": NAMES,
        "PROPOSAL_FILES_TRAIN": NAMES,
        "PROPOSAL_FILES_TEST": NAMES,
    },
    "DATALOADER": {
        "NUM_WORKERS": number(0, 512, "processes"),
        "SAMPLER_TRAIN": choice("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
        "REPEAT_THRESHOLD": SHARE,
    },
    "SOLVER": {
        "MAX_ITER": ITERATIONS,
        "IMS_PER_BATCH": number(1, 65536, "images"),
        "REFERENCE_WORLD_SIZE": number(0, 65536, "processes"),
        "CHECKPOINT_PERIOD": ITERATIONS,
        "BASE_LR": number(0, 1000),
        "BIAS_LR_FACTOR": number(0, 1000),
        "MOMENTUM": number(0, 0.999999),
        **dict.fromkeys(("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"), number(0, 10)),
        "CLIP_GRADIENTS": {
            "CLIP_TYPE": choice("value", "norm"),
            "CLIP_VALUE": number(1e-9, 1e9),
            "NORM_TYPE": Rule(lambda value: value > 0, "above 0"),  # infinity: the largest element
        },
        "LR_SCHEDULER_NAME": choice("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
        "GAMMA": number(1e-9, 1),
        "STEPS": increasing(each(number(1, MANY, "iterations"), least=0)),
        "BASE_LR_END": number(0, 1000),
        "NUM_DECAYS": number(0, 1000),
        "WARMUP_FACTOR": SHARE,
        "WARMUP_ITERS": number(0, MANY, "iterations"),
        "WARMUP_METHOD": choice("linear", "constant"),
    },
    "TEST": {
        "EVAL_PERIOD": number(0, MANY, "iterations (0: at the end only)"),
        "DETECTIONS_PER_IMAGE": Rule(
            lambda value: value == -1 or 1 <= value <= 100_000, "1 to 100,000 detections, or -1 for no limit"
        ),
        "EXPECTED_RESULTS": EXPECTED_RESULTS,
        "AUG": {"MIN_SIZES": each(PIXELS), "MAX_SIZE": number(1, 100_000, "pixels")},
        "PRECISE_BN": {"NUM_ITER": number(1, 10**6, "batches")},
    },
    "SEED": number(-1, 2**31 - 1),
    "FLOAT32_PRECISION": choice("", "highest", "high", "medium"),
    "VIS_PERIOD": number(0, MANY, "iterations"),
    "D2_MASKRCNN": {
        "INFERENCE": {
            "PRECISION": choice(*PRECISIONS),
            "TILE": Rule(lambda value: value == 0 or 32 <= value <= 100_000, "0 (no tiles), or 32 to 100,000 pixels"),
            "OVERLAP": number(0, 0.9),
        },
        "SOLVER": {
            "OPTIMIZER": choice("SGD", "AdamW"),
            "ACCUMULATE": number(1, 65536, "micro-batches"),
            "MAX_GRAD_NORM": number(0, 1e9, "(0 does not clip)"),
            "AMP_DTYPE": choice("auto", "float16", "bfloat16"),
            "REFERENCE_BATCH": number(0, 65536, "images (0 does not scale)"),
        },
        "LOG_PERIOD": ITERATIONS,
        "INSPECT": {"IMAGES": number(0, 10_000, "images"), "SCORE_THRESHOLD": SHARE, "MAX_SHARE": SHARE},
        "BEST_CHECKPOINT": BEST,
        "EARLY_STOPPING": {
            **BEST,
            "PATIENCE": number(0, MANY, "evaluations (0 never stops early)"),
            "MIN_DELTA": number(0, 1e6),
        },
        "EMA": {"DECAY": Rule(lambda value: 0 <= value < 1, "at least 0 and less than 1, such as 0.999")},
        "EVALUATION": {"CONFUSION_IOU": SHARE, "CONFUSION_SCORE": SHARE},
        "INPUT": {
            "LSJ": {"IMAGE_SIZE": PIXELS, "MIN_SCALE": number(0.01, 100), "MAX_SCALE": number(0.01, 100)},
            "COPY_PASTE": {"PROBABILITY": SHARE},
        },
        "WANDB": {
            "TAGS": NAMES,
            "MODE": choice("online", "offline", "disabled"),
            "LOG_MODEL": choice("none", "end", "all"),
            "WATCH": choice("", "gradients", "parameters", "all"),
            "WATCH_PERIOD": ITERATIONS,
            "NUM_IMAGES": number(0, 10_000, "images"),
            "SCORE_THRESHOLD": SHARE,
        },
    },
}

# Numbers of components that this model does not have: their type is checked, and that they are finite.
UNUSED = (
    "VERSION",
    "GLOBAL",
    "MODEL.RESNETS.DEFORM",
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.ROI_BOX_HEAD.FED_LOSS",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.SEM_SEG_HEAD",
    "MODEL.PANOPTIC_FPN",
    "MODEL.RETINANET",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK",
    "TEST.KEYPOINT_OKS_SIGMAS",
)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Rule]:
    flat: dict[str, Rule] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


RULES = _flatten(_TREE)
