import json

import pytest
import torch

from tests.engine.hooks.conftest import Killed, kill_before

PRECISE_BN = [
    "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2,
]  # fmt: skip
AUG = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.MAX_SIZE", 128]


def test_precise_bn_changes_the_statistics_and_nothing_else_also_after_a_restart(trainer_of, tmp_path):
    opts = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "()"]
    trainer_of(*opts, "OUTPUT_DIR", tmp_path / "plain").train()
    trainer_of(*opts, *PRECISE_BN, "OUTPUT_DIR", tmp_path / "straight").train()
    trainer = trainer_of(*opts, *PRECISE_BN)
    kill_before(trainer, 3)
    with pytest.raises(Killed):
        trainer.train()
    again = trainer_of(*opts, *PRECISE_BN, resume=True)
    assert again.start_iter == 2
    again.train()
    plain, straight, killed = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("plain", "straight", "out")
    )
    assert all(torch.equal(straight[name], killed[name]) for name in straight)
    different = {name for name in plain if not torch.equal(plain[name], straight[name])}
    assert different and all("running" in name or "num_batches" in name for name in different)


def test_test_time_augmentation_at_the_end(trainer_of, tmp_path):
    trainer = trainer_of(*AUG, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "D2_MASKRCNN.EMA.ENABLED", True)
    trainer.train()
    for name in ("tta/segm/AP", "tta/bbox/AP", "tta/ema/segm/AP"):
        assert [iteration for _, iteration in trainer.storage.history(name).values()] == [1]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert "tta/segm/AP" in lines[-1]
    assert (tmp_path / "out" / "inference_tta" / "coco_instances_results.json").is_file()


def test_test_time_augmentation_after_early_stopping(trainer_of):
    trainer = trainer_of(
        *AUG, "SOLVER.MAX_ITER", 9, "TEST.EVAL_PERIOD", 1, "D2_MASKRCNN.EARLY_STOPPING.PATIENCE", 1,
        "D2_MASKRCNN.EARLY_STOPPING.METRIC", "validation/total_loss",
        "D2_MASKRCNN.EARLY_STOPPING.MIN_DELTA", 1000,
    )  # fmt: skip
    trainer.train()
    assert trainer.iter == 2
    assert [iteration for _, iteration in trainer.storage.history("tta/segm/AP").values()] == [1]
