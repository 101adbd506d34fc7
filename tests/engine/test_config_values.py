import pytest

from d2_maskrcnn.config.validation import RULES, check_values
from d2_maskrcnn.errors import UserError

OURS = "D2_MASKRCNN."


def test_defaults_are_values_that_can_be(tiny_cfg):
    check_values(tiny_cfg())
    assert len(RULES) > 20


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.MAX_ITER", 0, "is 0; expected at least 1 iteration"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "is 0; expected at least 1 iteration"),
        ("SOLVER.IMS_PER_BATCH", 0, "is 0; expected at least 1 image"),
        ("SOLVER.BASE_LR", "nan", "is nan; expected at least 0"),
        (OURS + "LOG_PERIOD", 0, "is 0; expected at least 1 iteration"),
        (OURS + "SOLVER.MAX_GRAD_NORM", -1, "is -1.0; expected at least 0"),
        (OURS + "SOLVER.AMP_DTYPE", "half", "is 'half'; expected one of 'auto', 'float16', 'bfloat16'"),
        (OURS + "EMA.DECAY", 1.0, "is 1.0; expected at least 0 and less than 1"),
        (OURS + "EVALUATION.CONFUSION_IOU", 1.5, "is 1.5; expected 0 to 1"),
        (OURS + "WANDB.NUM_IMAGES", -1, "is -1; expected at least 0 images"),
        (OURS + "WANDB.WATCH_PERIOD", 0, "is 0; expected at least 1"),
        (OURS + "INPUT.COPY_PASTE.PROBABILITY", 2.0, "is 2.0; expected 0 to 1"),
    ],
)
def test_a_value_that_cannot_be(tiny_cfg, key, value, message):
    with pytest.raises(UserError, match=message) as error:
        check_values(tiny_cfg(key, value))
    assert str(error.value).startswith(key)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["SOLVER.AMP.ENABLED", True, OURS + "SOLVER.AMP_DTYPE", "float16"],
            "AMP_DTYPE is 'float16' on MODEL.DEVICE cpu",
        ),
        ([OURS + "SOLVER.ACCUMULATE", 3], "ACCUMULATE is 3: expected 1 to 2"),
        ([OURS + "EARLY_STOPPING.PATIENCE", 3, "TEST.EVAL_PERIOD", 0], "PATIENCE is 3, but nothing is evaluated"),
        (["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "()"], r"MIN_SIZES is \(\); expected one or several sizes"),
    ],
)
def test_values_that_do_not_fit_together(tiny_cfg, opts, message):
    with pytest.raises(UserError, match=message):
        check_values(tiny_cfg(*opts))
