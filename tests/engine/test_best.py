import pytest
import torch

from d2_maskrcnn.engine.hooks.best_checkpoint import BestCheckpoint, EarlyStopping
from d2_maskrcnn.errors import UserError

EVERY = ["TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1]


class Curve:
    """An evaluation that gives these values, one after the other, by iteration."""

    def __init__(self, trainer, values):
        self.trainer, self.values = trainer, values

    def __call__(self):
        return {"made": {"up": self.values[self.trainer.iter]}}


def run(trainer_of, values, *opts, resume=False, stop_after=None):
    trainer = trainer_of(
        *EVERY, "SOLVER.MAX_ITER", len(values), "D2_MASKRCNN.BEST_CHECKPOINT.METRIC", "made/up",
        "D2_MASKRCNN.EARLY_STOPPING.METRIC", "made/up", *opts, resume=resume,
    )  # fmt: skip
    hook = next(hook for hook in trainer._hooks if hasattr(hook, "function"))
    hook.function = Curve(trainer, values)
    if stop_after is not None:
        kill_before(trainer, stop_after + 1)
        with pytest.raises(Killed):
            trainer.train()
    else:
        trainer.train()
    return trainer


class Killed(Exception):
    pass


def kill_before(trainer, iteration):
    """Ends the training without a chance to save, as a signal would."""
    step = trainer.run_step

    def run_step():
        if trainer.iter == iteration:
            raise Killed
        step()

    trainer.run_step = run_step


def hook_of(trainer, kind):
    return next(hook for hook in trainer._hooks if isinstance(hook, kind))


def best_file(tmp_path):
    return torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)


def test_best_is_kept(trainer_of, tmp_path):
    run(trainer_of, [1.0, 5.0, float("nan"), 3.0])
    assert best_file(tmp_path)["best_metric"] == {"name": "made/up", "value": 5.0}
    assert best_file(tmp_path)["iteration"] == 1
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"


def test_averaged_weights_of_the_best(trainer_of, tmp_path):
    trainer = run(trainer_of, [1.0, 5.0, 3.0], "D2_MASKRCNN.EMA.ENABLED", True, "D2_MASKRCNN.EMA.DECAY", 0.5)
    best, average = best_file(tmp_path), torch.load(tmp_path / "out" / "model_best_ema.pth", weights_only=True)
    assert average["metadata"]["iteration"] == best["iteration"] == 1
    names = list(best["ema"]["values"])
    assert all(torch.equal(average["model"][name], best["ema"]["values"][name]) for name in names)
    assert average["model"].keys() == trainer.model.state_dict().keys()


def test_smaller_is_better(trainer_of, tmp_path):
    run(trainer_of, [2.0, 0.5, 1.0], "D2_MASKRCNN.BEST_CHECKPOINT.MODE", "min")
    assert best_file(tmp_path)["best_metric"]["value"] == 0.5


def test_a_resumed_run_never_overwrites_a_better_model(trainer_of, tmp_path):
    values = [1.0, 5.0, 2.0, 4.0, 4.5]
    run(trainer_of, values, stop_after=2)
    trainer = run(trainer_of, values, resume=True)
    assert trainer.start_iter == 3
    assert best_file(tmp_path)["iteration"] == 1
    assert hook_of(trainer, BestCheckpoint).best == 5.0


def test_resuming_from_the_best_checkpoint_itself(trainer_of, tmp_path):
    values = [1.0, 5.0, 2.0, 4.0]
    run(trainer_of, values, "SOLVER.CHECKPOINT_PERIOD", 100, stop_after=2)
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_best.pth"
    trainer = run(trainer_of, values, "SOLVER.CHECKPOINT_PERIOD", 100, resume=True)
    assert trainer.start_iter == 2 and best_file(tmp_path)["iteration"] == 1


def test_a_best_file_that_is_newer_than_the_checkpoint(trainer_of, tmp_path):
    """Killed after the best was saved, before it was noted as the last checkpoint: resumed from an older one."""
    run(trainer_of, [1.0, 2.0, 5.0, 3.0], stop_after=2)
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000001.pth")
    # This time the same iteration gives a little less, as it may on a GPU.
    trainer = run(trainer_of, [1.0, 2.0, 4.9, 3.0], resume=True)
    assert trainer.start_iter == 2
    assert hook_of(trainer, BestCheckpoint).best == 5.0
    assert best_file(tmp_path)["best_metric"]["value"] == 5.0


def test_a_broken_best_file_does_not_stop_a_resumed_training(trainer_of, tmp_path, caplog):
    run(trainer_of, [1.0, 2.0, 3.0], stop_after=1)
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "out" / "model_best.pth").write_bytes(b"cut off")
    run(trainer_of, [1.0, 2.0, 3.0], resume=True)
    assert best_file(tmp_path)["best_metric"]["value"] == 3.0
    assert "model_best.pth cannot be read" in caplog.text


def test_another_direction_starts_anew(trainer_of):
    run(trainer_of, [1.0, 5.0, 2.0], stop_after=1)
    trainer = run(trainer_of, [1.0, 5.0, 2.0], "D2_MASKRCNN.BEST_CHECKPOINT.MODE", "min", resume=True)
    assert hook_of(trainer, BestCheckpoint).best == 2.0


def test_another_metric_starts_anew(trainer_of, tmp_path):
    run(trainer_of, [1.0, 5.0, 2.0], stop_after=1)
    trainer = trainer_of(*EVERY, "SOLVER.MAX_ITER", 3, resume=True)
    assert hook_of(trainer, BestCheckpoint).best is None


PATIENCE = ["D2_MASKRCNN.EARLY_STOPPING.PATIENCE", 2, "D2_MASKRCNN.EARLY_STOPPING.MIN_DELTA", 0.5]


def test_patience(trainer_of, tmp_path):
    # 1.4 is better than 1.0, but not by 0.5; 1.6 is.
    trainer = run(trainer_of, [1.0, 1.4, 1.6, 1.7, 1.8, 9.0, 9.0], *PATIENCE)
    assert trainer.iter == 5
    final = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert final["iteration"] == 4
    assert best_file(tmp_path)["best_metric"]["value"] == 1.8  # the best model needs no minimum difference


def test_patience_survives_a_restart(trainer_of, tmp_path):
    values = [1.0, 0.9, 0.8, 9.0]
    run(trainer_of, values, *PATIENCE, stop_after=1)
    trainer = run(trainer_of, values, *PATIENCE, resume=True)
    assert trainer.start_iter == 2 and trainer.iter == 3
    assert hook_of(trainer, EarlyStopping).bad_evaluations == 2
    # Once stopped, it stays so, until the patience is raised.
    again = run(trainer_of, values, *PATIENCE, resume=True)
    assert again.iter == again.start_iter == 3
    more = run(trainer_of, values, *PATIENCE, "D2_MASKRCNN.EARLY_STOPPING.PATIENCE", 3, resume=True)
    assert more.iter == 4
    assert best_file(tmp_path)["best_metric"]["value"] == 9.0


def test_missing_metric_is_named(trainer_of, caplog):
    run(trainer_of, [1.0], "D2_MASKRCNN.BEST_CHECKPOINT.METRIC", "made/upp")
    assert "no metric 'made/upp'. Did you mean made/up?" in caplog.text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["D2_MASKRCNN.BEST_CHECKPOINT.MODE", "most"], "'most'; expected one of 'max', 'min'"),
        (["D2_MASKRCNN.EARLY_STOPPING.PATIENCE", -1], "PATIENCE is -1; expected"),
        ([*PATIENCE, "D2_MASKRCNN.EARLY_STOPPING.MIN_DELTA", -1.0], "MIN_DELTA is -1.0; expected"),
    ],
)
def test_bad_settings(trainer_of, opts, message):
    with pytest.raises(UserError, match=message):
        trainer_of(*opts)
