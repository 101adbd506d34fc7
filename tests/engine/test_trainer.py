import json
import random
import signal

import pytest
import torch
import yaml

from d2_maskrcnn.engine import Trainer

SETTINGS = [
    "SOLVER.MAX_ITER", 10, "SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 2,
    "D2_MASKRCNN.EMA.ENABLED", True, "D2_MASKRCNN.EMA.DECAY", 0.9,
    "D2_MASKRCNN.SOLVER.ACCUMULATE", 2,
    "D2_MASKRCNN.EARLY_STOPPING.PATIENCE", 50, "D2_MASKRCNN.EARLY_STOPPING.METRIC", "validation/total_loss",
    "D2_MASKRCNN.EARLY_STOPPING.MODE", "min",
    "D2_MASKRCNN.BEST_CHECKPOINT.METRIC", "ema/validation/total_loss", "D2_MASKRCNN.BEST_CHECKPOINT.MODE", "min",
]  # fmt: skip


SHORT = ["SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()"]


class Killed(Exception):
    """Raised to end a training without saving, as SIGKILL does."""


def kill_somewhere(trainer, where):
    """Raise :class:`Killed` in the forward pass, after the update, or when a checkpoint is written."""
    moments = {"step": (trainer, "run_step"), "hooks": (trainer, "after_step"), "save": (trainer.checkpointer, "save")}
    iteration, moment = where
    owner, name = moments[moment]
    original = getattr(owner, name)

    def interrupted(*args, **kwargs):
        if trainer.iter >= iteration:
            raise Killed
        return original(*args, **kwargs)

    setattr(owner, name, interrupted)


def differences(first, second, path=""):
    """Return the paths of the values that differ, at any depth."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        return [each for key in first for each in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        pairs = enumerate(zip(first, second, strict=True))
        return [each for i, pair in pairs for each in differences(*pair, f"{path}/{i}")]
    return [] if first == second else [path]


def test_killed_ten_times_equals_uninterrupted(trainer_of, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    trainer_of(*SETTINGS, "OUTPUT_DIR", straight).train()

    chance, starts = random.Random(1), []
    for _ in range(10):
        trainer = trainer_of(*SETTINGS, "OUTPUT_DIR", killed, resume=True)
        starts.append(trainer.start_iter)
        kill_somewhere(trainer, (trainer.start_iter + chance.randrange(3), chance.choice(["step", "hooks", "save"])))
        try:
            trainer.train()
        except Killed:
            continue
        break
    assert len(set(starts)) > 2
    trainer = trainer_of(*SETTINGS, "OUTPUT_DIR", killed, resume=True)
    trainer.train()

    for name in ("model_final.pth", "model_best.pth"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (straight, killed))
        for checkpoint, folder in ((first, straight), (second, killed)):
            metadata = checkpoint["metadata"]
            metadata["config"] = metadata["config"].replace(str(folder), "OUTPUT_DIR")
        assert {"model", "ema", "trainer", "iteration"} <= first.keys()
        assert {"BestCheckpoint", "EarlyStopping", "LRScheduler"} <= first["trainer"]["hooks"].keys()
        assert differences(first, second) == []


def test_comparison_sees_a_difference():
    first = {"a": [torch.zeros(2), 1.0], "b": {"c": "x"}}
    assert differences(first, {"a": [torch.zeros(2), 1.0], "b": {"c": "x"}}) == []
    assert differences(first, {"a": [torch.ones(2), 1.0], "b": {"c": "y"}}) == ["/a/0", "/b/c"]
    with pytest.raises(AssertionError):
        differences(first, {"a": []})


def test_a_signal_before_the_first_iteration_saves_nothing(trainer_of, tmp_path):
    trainer = trainer_of("SOLVER.MAX_ITER", 3)
    trainer.before_train = lambda: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == 130
    assert not list((tmp_path / "out").glob("*.pth"))


def test_choose_seed(tiny_cfg):
    assert Trainer(tiny_cfg("SEED", 5)).seed == 5
    first, second = (Trainer(tiny_cfg("SEED", -1)).seed for _ in range(2))
    assert first != second and min(first, second) >= 0 and max(first, second) < 2**31


def test_a_finished_training_that_is_resumed(trainer_of, tmp_path, caplog):
    caplog.set_level("INFO")
    trainer_of("SOLVER.MAX_ITER", 3).train()
    before = (tmp_path / "out" / "model_final.pth").read_bytes()
    for max_iter in (3, 2):
        caplog.clear()
        again = trainer_of("SOLVER.MAX_ITER", max_iter, resume=True)
        assert "segm" in again.train()
        assert "the checkpoint was saved after 3 iterations, so SOLVER.MAX_ITER" in caplog.text
        assert f"SOLVER.MAX_ITER {max_iter} is reached. Raise SOLVER.MAX_ITER" in caplog.text
        assert "Training iterations" not in caplog.text
        assert (tmp_path / "out" / "model_final.pth").read_bytes() == before
        assert [iteration for _, iteration in again.storage.history("validation/total_loss").values()] == [2]
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [2, 2, 2] and "segm/AP" in records[-1]


def test_the_config_in_force_is_written(trainer_of, tmp_path):
    trainer = trainer_of(*SHORT, "SEED", -1, "SOLVER.BASE_LR", 0.02, "D2_MASKRCNN.SOLVER.REFERENCE_BATCH", 8)
    trainer.train()
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["SEED"] == trainer.seed
    assert config["SOLVER"]["BASE_LR"] == pytest.approx(0.01)  # AdamW, batches of 2


def test_records_of_an_earlier_training_are_announced(trainer_of, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text('{"iteration": 4}\n')
    trainer_of(*SHORT).train()
    assert "metrics.json contains records of an earlier training" in caplog.text


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_a_checkpoint(trainer_of, tmp_path, name):
    trainer = trainer_of("SOLVER.MAX_ITER", 50, "DATASETS.TEST", "()")
    step = trainer.run_step

    def run_step():
        if trainer.iter == 3:
            signal.raise_signal(signal.Signals[name])
        step()

    trainer.run_step = run_step
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == 130
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000003.pth"


def test_an_ignored_hangup_is_ignored(trainer_of):
    """Under nohup, SIGHUP is ignored."""
    trainer = trainer_of(*SHORT)
    step = trainer.run_step
    trainer.run_step = lambda: (signal.raise_signal(signal.SIGHUP), step())
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer.train()
    finally:
        signal.signal(signal.SIGHUP, old)
    assert trainer.iter == 1
