import math
import re

import pytest

from d2_maskrcnn import add_d2_maskrcnn_config
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.config.rules import RULES, UNUSED
from d2_maskrcnn.config.validation import check_values, leaves, warn_ignored_keys
from d2_maskrcnn.errors import UserError
from detectron2.config import get_cfg

OURS = "D2_MASKRCNN."


def defaults():
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    return dict(leaves(cfg))


def test_the_defaults_are_valid(tiny_cfg):
    check_values(tiny_cfg())


def test_every_number_and_list_of_numbers_has_a_rule():
    def is_numeric(value):
        items = value if isinstance(value, list | tuple) else [value]
        return any(isinstance(v, list | tuple) or type(v) in (int, float) for v in items)

    numeric = {key for key, value in defaults().items() if is_numeric(value) and not key.startswith(UNUSED)}
    assert numeric <= RULES.keys()


def _keys_of(kinds):
    return [key for key, value in defaults().items() if type(value) in kinds and (key in RULES or bool in kinds)]


@pytest.mark.parametrize("key", _keys_of((int, float)))
def test_nonsense_numbers_are_refused(key):
    above = [] if key == "SOLVER.CLIP_GRADIENTS.NORM_TYPE" else [10**12, 10**400, math.inf]  # there is an inf-norm
    for value in (-(10**12), *above, math.nan, None, "x", [], True):
        with pytest.raises(UserError, match=f"{key} is .*; expected ") as error:
            load_config("", [key, value])
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("key", _keys_of((tuple, list)))
def test_lists_of_something_else_are_refused(key):
    for value in (({},), (None,), [[{}]], [[]], ("",), 3):
        with pytest.raises(UserError, match=f"{re.escape(key)} is .*; expected "):
            load_config("", [key, value])


def test_infinite_numbers_of_unused_keys_are_refused():
    key = "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA"
    with pytest.raises(UserError, match=f"{key} is -inf; expected a finite number"):
        load_config("", [key, "-1e999"])


@pytest.mark.parametrize("key", _keys_of((str,)))
def test_unknown_choices_are_refused(key):
    with pytest.raises(UserError, match=f"{key} is 'Foo'; expected one of"):
        load_config("", [key, "Foo"])


@pytest.mark.parametrize("key", _keys_of((bool,)))
def test_switches_are_true_or_false(key):
    for value in (1, "yes", None, []):
        with pytest.raises(UserError, match=f"{key} is .*; expected True or False"):
            load_config("", [key, value])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.IMS_PER_BATCH", 10**9, "is 1000000000; expected 1 to 65,536 images"),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 100_000, "is 100000; expected 0 to 64 samples"),
        ("SOLVER.BASE_LR", "None", "is None; expected a number"),
        ("SOLVER.LR_SCHEDULER_NAME", "Foo", "expected one of 'WarmupMultiStepLR', 'WarmupCosineLR'"),
        ("SOLVER.STEPS", (30, 20), "in increasing order"),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "a list of 1 or more numbers"),
        ("MODEL.PIXEL_MEAN", [], "a list of 1 or more numbers"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [32], "a list of lists of numbers"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[-1]], "each 1 to 100,000 pixels"),
        ("INPUT.MIN_SIZE_TRAIN", (), "a list of 1 or more numbers"),
        ("INPUT.MIN_SIZE_TRAIN", ("640",), "a list of 1 or more numbers"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "is 0; expected 1 to 100,000 detections, or -1"),
        ("TEST.EXPECTED_RESULTS", [["segm", "AP", "x", 1]], r"a list of \[task, metric, value, tolerance\]"),
        ("DATASETS.TRAIN", (0,), "a list of names"),
        (OURS + "EMA.DECAY", 1.0, "at least 0 and less than 1"),
    ],
)
def test_messages_say_what_is_expected(key, value, message):
    with pytest.raises(UserError, match=message):
        load_config("", [key, value])


def test_a_config_made_in_python_is_checked(tiny_cfg):
    cfg = tiny_cfg().clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = -5
    with pytest.raises(UserError, match=r"^SOLVER\.IMS_PER_BATCH is -5"):
        check_values(cfg)


@pytest.mark.parametrize(
    ("image_format", "mean", "std"), [("BGR", 1, 1), ("RAW", 1, 3), ("RGB", 4, 4), ("RAW", 3, 2), ("RGB", 3, 4)]
)
def test_channels_of_the_config_agree(tiny_cfg, image_format, mean, std):
    cfg = tiny_cfg("INPUT.FORMAT", "RAW", "MODEL.PIXEL_MEAN", [5.0], "MODEL.PIXEL_STD", [2.0]).clone()
    check_values(cfg)
    cfg.defrost()
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = image_format, [1.0] * mean, [1.0] * std
    with pytest.raises(UserError, match=f"PIXEL_MEAN has {mean} values, MODEL.PIXEL_STD {std} and .*'{image_format}'"):
        check_values(cfg)


def test_keys_of_the_users_own_are_left_alone(tiny_cfg):
    cfg = tiny_cfg().clone()
    cfg.defrost()
    cfg.MY_KEY = -5
    check_values(cfg)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "", "cpu:7:8"])
def test_devices(tiny_cfg, device):
    with pytest.raises(UserError, match=f"MODEL.DEVICE is '{device}'; expected one of cpu, cuda"):
        check_values(tiny_cfg("MODEL.DEVICE", device))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["SOLVER.AMP.ENABLED", True, OURS + "SOLVER.AMP_DTYPE", "float16"],
            "AMP_DTYPE is 'float16' on MODEL.DEVICE cpu",
        ),
        ([OURS + "SOLVER.ACCUMULATE", 3], "ACCUMULATE is 3; expected 1 to 2"),
        ([OURS + "EARLY_STOPPING.PATIENCE", 3, "TEST.EVAL_PERIOD", 0], "PATIENCE is 3, but nothing is evaluated"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR", 0], "needs a BASE_LR above 0"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 9], "BASE_LR_END from 0 to BASE_LR"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "expected two sizes"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [300, 0.5]], "needs shares of the image"),
    ],
)
def test_values_that_do_not_fit_together(tiny_cfg, opts, message):
    with pytest.raises(UserError, match=message):
        check_values(tiny_cfg(*opts))


@pytest.mark.parametrize(
    ("opts", "ignored"),
    [
        ([OURS + "SOLVER.OPTIMIZER", "AdamW", "SOLVER.MOMENTUM", 0.5], "SOLVER.MOMENTUM 0.5 is ignored"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.STEPS", (5,)], "SOLVER.STEPS (5,) is ignored"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.NUM_DECAYS", 5], "SOLVER.NUM_DECAYS 5 is ignored"),
    ],
)
def test_ignored_keys_are_named(tiny_cfg, opts, ignored, caplog):
    warn_ignored_keys(tiny_cfg(*opts))
    assert ignored in caplog.text


def test_used_keys_are_not_reported_as_ignored(tiny_cfg, caplog):
    warn_ignored_keys(tiny_cfg(OURS + "SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.5))
    assert "MOMENTUM" not in caplog.text
