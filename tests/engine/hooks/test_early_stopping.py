import pytest
import torch

from d2_maskrcnn.errors import UserError

PATIENCE = ["D2_MASKRCNN.EARLY_STOPPING.PATIENCE", 2, "D2_MASKRCNN.EARLY_STOPPING.MIN_DELTA", 0.5]


def test_patience(train_with_metric, tmp_path):
    # 1.4 is better than 1.0, but not by 0.5; 1.6 is.
    trainer = train_with_metric([1.0, 1.4, 1.6, 1.7, 1.8, 9.0, 9.0], *PATIENCE)
    assert trainer.iter == 5
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["iteration"] == 4
    assert trainer.best_checkpoint.best == 1.8  # the best checkpoint needs no minimum difference


def test_patience_continues_after_a_restart(train_with_metric, caplog):
    caplog.set_level("INFO")
    values = [1.0, 0.9, 0.8, 9.0]
    train_with_metric(values, *PATIENCE, stop_after=1)
    trainer = train_with_metric(values, *PATIENCE, resume=True)
    assert trainer.start_iter == 2 and trainer.iter == 3
    assert trainer.early_stopping.bad_evaluations == 2
    # A training that was stopped early remains stopped until the patience is raised.
    caplog.clear()
    again = train_with_metric(values, *PATIENCE, resume=True)
    assert again.iter == again.start_iter == 3
    assert "stopped early after iteration 2" in caplog.text and "Training iterations" not in caplog.text
    more = train_with_metric(values, *PATIENCE, "D2_MASKRCNN.EARLY_STOPPING.PATIENCE", 3, resume=True)
    assert more.iter == 4
    assert more.best_checkpoint.best == 9.0


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["D2_MASKRCNN.EARLY_STOPPING.PATIENCE", -1], "PATIENCE is -1; expected"),
        ([*PATIENCE, "D2_MASKRCNN.EARLY_STOPPING.MIN_DELTA", -1.0], "MIN_DELTA is -1.0; expected"),
    ],
)
def test_bad_settings(trainer_of, opts, message):
    with pytest.raises(UserError, match=message):
        trainer_of(*opts)


def test_a_run_killed_before_its_final_checkpoint_gets_it_when_resumed(trainer_of, tmp_path):
    opts = ["SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()"]
    trainer_of(*opts).train()
    final = tmp_path / "out" / "model_final.pth"
    expected = torch.load(final, weights_only=True)
    final.unlink()
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000001.pth")

    trainer_of(*opts, resume=True).train()
    restored = torch.load(final, weights_only=True)
    assert restored["iteration"] == restored["trainer"]["iteration"] == expected["iteration"] == 1
    assert all(torch.equal(value, restored["model"][name]) for name, value in expected["model"].items())
