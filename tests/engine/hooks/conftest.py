"""Short trainings whose metric has given values."""

import pytest

from d2_maskrcnn import compat
from d2_maskrcnn.engine.hooks.evaluation import Evaluate


class Killed(Exception):
    """Raised to end a training without saving, as SIGKILL does."""


def kill_before(trainer, iteration):
    step = trainer.run_step

    def run_step():
        if trainer.iter == iteration:
            raise Killed
        step()

    trainer.run_step = run_step


@pytest.fixture
def train_with_metric(trainer_of):
    """``train_with_metric([1.0, 5.0], KEY, VALUE, ...)``: the evaluation of iteration i returns made/up = values[i].

    With ``stop_after`` the training is killed after that iteration. Returns the trainer.
    """

    def train(values, *opts, resume=False, stop_after=None):
        trainer = trainer_of(
            "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", len(values),
            "D2_MASKRCNN.BEST_CHECKPOINT.METRIC", "made/up", "D2_MASKRCNN.EARLY_STOPPING.METRIC", "made/up",
            *opts, resume=resume,
        )  # fmt: skip
        evaluate = next(hook for hook in compat.registered_hooks(trainer) if isinstance(hook, Evaluate))
        evaluate.function = lambda: {"made": {"up": values[trainer.iter]}}
        if stop_after is None:
            trainer.train()
        else:
            kill_before(trainer, stop_after + 1)
            with pytest.raises(Killed):
                trainer.train()
        return trainer

    return train
