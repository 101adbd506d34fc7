import pytest
import torch
import yaml

from d2_maskrcnn.engine.resume import log_changes
from d2_maskrcnn.errors import UserError

CONSTANT = [
    "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", 0,
    "DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", 100,
]  # fmt: skip


def messages(caplog, part):
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def rates(trainer):
    return [rate for rate, _ in trainer.storage.history("lr").values()]


def test_the_learning_rate_of_the_config_is_applied(trainer_of, tmp_path, caplog):
    first = trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.001)
    first.train()
    resumed = trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.0001, resume=True)
    resumed.train()
    assert rates(first) == [0.001, 0.001] and rates(resumed) == [0.0001, 0.0001]
    assert messages(caplog, "SOLVER.BASE_LR was") == [
        "Resuming with another config: SOLVER.BASE_LR was 0.001, is now 0.0001: applied"
    ]
    assert len(messages(caplog, "SOLVER.MAX_ITER was 2, is now 4: applied")) == 1
    assert len(messages(caplog, "Resuming with")) == 2
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["SOLVER"]["BASE_LR"] == 0.0001


def test_schedule_momentum_and_weight_decay_of_the_config_are_applied(trainer_of):
    sgd = [*CONSTANT, "D2_MASKRCNN.SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.001]
    trainer_of(*sgd, "SOLVER.MAX_ITER", 2).train()
    changed = ["SOLVER.MOMENTUM", 0.5, "SOLVER.WEIGHT_DECAY", 0.25, "SOLVER.STEPS", "(1, 3)", "SOLVER.GAMMA", 0.1]
    resumed = trainer_of(*sgd, "SOLVER.MAX_ITER", 4, *changed, resume=True)
    group = resumed.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.5, 0.25, 0.001)
    assert all("momentum_buffer" in state for state in resumed.optimizer.state.values())
    resumed.train()
    assert rates(resumed) == pytest.approx([0.0001, 0.00001])


def test_a_checkpoint_without_the_state_of_the_schedule(trainer_of):
    decaying = [*CONSTANT, "SOLVER.STEPS", "(2,)", "SOLVER.GAMMA", 0.1, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.001]
    first = trainer_of(*decaying)
    first.max_iter = 3
    first.train()
    path = first.checkpointer.get_checkpoint_file()
    content = torch.load(path, weights_only=True)
    del content["trainer"]["hooks"]["LRScheduler"]
    torch.save(content, path)
    resumed = trainer_of(*decaying, resume=True)
    resumed.train()
    assert rates(resumed) == pytest.approx([0.0001])


def test_the_seed_of_the_checkpoint_is_kept(trainer_of, tmp_path, caplog):
    trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 1).train()
    resumed = trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 2, "SEED", 8, resume=True)
    resumed.train()
    assert resumed.seed == resumed.train_loader.seed == 7
    assert messages(caplog, "SEED was 7, is now 8: the checkpoint's seed is kept")
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["SEED"] == 7


def test_changed_data_and_batch_size_are_named(trainer_of, tiny_shapes, tmp_path, caplog):
    annotations = tmp_path / "annotations.json"
    annotations.write_bytes((tiny_shapes / "annotations" / "instances_train.json").read_bytes())
    opts = [*CONSTANT, "D2_MASKRCNN.DATA.TRAIN_JSON", annotations]
    trainer_of(*opts, "SOLVER.MAX_ITER", 1).train()
    annotations.write_bytes(annotations.read_bytes() + b"\n")
    trainer_of(*opts, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 4, resume=True).train()
    assert messages(caplog, "checksum of the annotations of")
    assert messages(caplog, "SOLVER.IMS_PER_BATCH was 2, is now 4: applied; the order of the images changes")


def test_nothing_is_logged_for_an_unchanged_config(trainer_of, caplog):
    trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.BASE_LR", 0.001).train()
    caplog.clear()
    trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.BASE_LR", 0.001, resume=True)
    assert not messages(caplog, "Resuming")


def test_another_optimizer_is_refused(trainer_of):
    trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 1, "D2_MASKRCNN.SOLVER.OPTIMIZER", "SGD").train()
    with pytest.raises(UserError, match=r"D2_MASKRCNN\.SOLVER\.OPTIMIZER was another optimizer"):
        trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 2, "D2_MASKRCNN.SOLVER.OPTIMIZER", "AdamW", resume=True)


@pytest.fixture
def rewritten(trainer_of, tmp_path):
    """Train one iteration, change the checkpoint with a function, and return the trainer that resumes it."""

    def rewrite(change):
        trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 0.001).train()
        path = tmp_path / "out" / "model_final.pth"
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)
        return trainer_of(*CONSTANT, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.0001, resume=True)

    return rewrite


@pytest.mark.parametrize("config", [None, "A: ["])
def test_a_checkpoint_without_a_readable_config(rewritten, caplog, config):
    resumed = rewritten(lambda checkpoint: checkpoint["metadata"].update(config=config))
    assert resumed.optimizer.param_groups[0]["lr"] == 0.0001
    assert len(messages(caplog, "contains no readable config")) == 1


def test_keys_of_one_side_only_are_named(caplog):
    log_changes({"A": "1", "B": "2"}, {"B": "2", "C": "3"})
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "A was 1, is now not set: applied",
        "C was not set, is now 3: applied",
    ]
