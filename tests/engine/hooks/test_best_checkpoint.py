import pytest
import torch

from d2_maskrcnn.errors import UserError


@pytest.fixture
def best_file(tmp_path):
    return lambda: torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)


def test_the_best_model_is_kept(train_with_metric, best_file, tmp_path):
    train_with_metric([1.0, 5.0, float("nan"), 3.0])
    assert best_file()["best_metric"] == {"name": "made/up", "value": 5.0}
    assert best_file()["iteration"] == 1
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"


def test_averaged_weights_of_the_best_model(train_with_metric, best_file, tmp_path):
    trainer = train_with_metric([1.0, 5.0, 3.0], "D2_MASKRCNN.EMA.ENABLED", True, "D2_MASKRCNN.EMA.DECAY", 0.5)
    path = tmp_path / "out" / "model_best_ema.pth"
    best, average = best_file(), torch.load(path, weights_only=True)
    assert average["metadata"]["iteration"] == best["iteration"] == 1
    names = list(best["ema"]["values"])
    assert all(torch.equal(average["model"][name], best["ema"]["values"][name]) for name in names)
    assert average["model"].keys() == trainer.model.state_dict().keys()
    assert trainer.best_checkpoint.files() == [tmp_path / "out" / "model_best.pth", path]


def test_smaller_is_better(train_with_metric, best_file):
    trainer = train_with_metric([2.0, 0.5, 1.0], "D2_MASKRCNN.BEST_CHECKPOINT.MODE", "min")
    assert best_file()["best_metric"]["value"] == 0.5
    assert [path.name for path in trainer.best_checkpoint.files()] == ["model_best.pth"]


def test_a_resumed_run_does_not_overwrite_a_better_model(train_with_metric, best_file):
    values = [1.0, 5.0, 2.0, 4.0, 4.5]
    train_with_metric(values, stop_after=2)
    trainer = train_with_metric(values, resume=True)
    assert trainer.start_iter == 3
    assert best_file()["iteration"] == 1
    assert trainer.best_checkpoint.best == 5.0


def test_resuming_from_the_best_checkpoint_itself(train_with_metric, best_file, tmp_path):
    values = [1.0, 5.0, 2.0, 4.0]
    train_with_metric(values, "SOLVER.CHECKPOINT_PERIOD", 100, stop_after=2)
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_best.pth"
    trainer = train_with_metric(values, "SOLVER.CHECKPOINT_PERIOD", 100, resume=True)
    assert trainer.start_iter == 2 and best_file()["iteration"] == 1


def test_a_best_file_that_is_newer_than_the_checkpoint(train_with_metric, best_file, tmp_path):
    """Killed after the best model was saved but before it became the last checkpoint: resumed from an older one."""
    train_with_metric([1.0, 2.0, 5.0, 3.0], stop_after=2)
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000001.pth")
    # The repeated iteration gives a slightly smaller value, as may happen on a GPU.
    trainer = train_with_metric([1.0, 2.0, 4.9, 3.0], resume=True)
    assert trainer.start_iter == 2
    assert trainer.best_checkpoint.best == 5.0
    assert best_file()["best_metric"]["value"] == 5.0


def test_a_broken_best_file_does_not_stop_a_resumed_training(train_with_metric, best_file, tmp_path, caplog):
    train_with_metric([1.0, 2.0, 3.0], stop_after=1)
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "out" / "model_best.pth").write_bytes(b"cut off")
    train_with_metric([1.0, 2.0, 3.0], resume=True)
    assert best_file()["best_metric"]["value"] == 3.0
    assert "model_best.pth cannot be read" in caplog.text


def test_another_metric_or_mode_starts_without_a_best_value(train_with_metric, trainer_of):
    train_with_metric([1.0, 5.0, 2.0], stop_after=1)
    trainer = trainer_of("TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 3, resume=True)
    assert trainer.start_iter == 2
    assert trainer.best_checkpoint.best is None
    trainer = train_with_metric([1.0, 5.0, 2.0], "D2_MASKRCNN.BEST_CHECKPOINT.MODE", "min", resume=True)
    assert trainer.best_checkpoint.best == 2.0


def test_a_missing_metric_is_named(train_with_metric, caplog):
    train_with_metric([1.0], "D2_MASKRCNN.BEST_CHECKPOINT.METRIC", "made/upp")
    assert "no metric 'made/upp'. Did you mean made/up?" in caplog.text


def test_unknown_mode(trainer_of):
    with pytest.raises(UserError, match="'most'; expected one of 'max', 'min'"):
        trainer_of("D2_MASKRCNN.BEST_CHECKPOINT.MODE", "most")
