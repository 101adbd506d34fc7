import logging

import pytest

from d2_maskrcnn.engine.lr_scaling import scale_learning_rate
from d2_maskrcnn.errors import UserError


@pytest.mark.parametrize(
    ("optimizer", "reference", "factor"),
    [("SGD", 0, 1.0), ("SGD", 2, 1.0), ("SGD", 16, 1 / 8), ("SGD", 1, 2.0), ("AdamW", 8, 0.5)],
)
def test_factor(tiny_cfg, caplog, optimizer, reference, factor):
    cfg = tiny_cfg(
        "SOLVER.BASE_LR", 0.02, "SOLVER.IMS_PER_BATCH", 2,
        "D2_MASKRCNN.SOLVER.OPTIMIZER", optimizer, "D2_MASKRCNN.SOLVER.REFERENCE_BATCH", reference,
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        scaled = scale_learning_rate(cfg)
    assert pytest.approx(0.02 * factor) == scaled.SOLVER.BASE_LR
    assert scaled.is_frozen() and cfg.SOLVER.BASE_LR == 0.02
    assert scale_learning_rate(scaled) is scaled
    assert ("chosen for batches of" in caplog.text) == (factor != 1.0)


def test_optimizer_gets_it(trainer_of):
    trainer = trainer_of("SOLVER.BASE_LR", 0.02, "D2_MASKRCNN.SOLVER.REFERENCE_BATCH", 8, "SOLVER.WARMUP_ITERS", 0)
    assert trainer.optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.01)


def test_negative_reference(tiny_cfg):
    with pytest.raises(UserError, match="REFERENCE_BATCH is -1"):
        scale_learning_rate(tiny_cfg("D2_MASKRCNN.SOLVER.REFERENCE_BATCH", -1))
