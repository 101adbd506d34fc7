"""The hook that evaluates during the training."""

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.engine.train_loop import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm


class EvalHook(HookBase):
    """Calls a function every ``eval_period`` iterations and at the end, and puts what it returns into the storage.

    Args:
        eval_period: 0 evaluates at the end only.
        eval_function: returns a nested dict of numbers, or nothing. Every process calls it.
        eval_after_train: evaluate at the end, unless an error ended the training.
    """

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Mapping[str, Any] | None], eval_after_train: bool = True
    ) -> None:
        self._period = eval_period
        self._function: Callable[[], Mapping[str, Any] | None] | None = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        """Evaluates if it is time; the end is left to :meth:`after_train`, so that it is not done twice."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        """Evaluates if the training came to its end, then drops the function, which may hold the trainer."""
        if self._eval_after_train and self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        self._function = None

    def _evaluate(self) -> None:
        assert self._function is not None
        results = self._function()
        if results:
            if not isinstance(results, Mapping):
                raise TypeError(f"the evaluation must return a dict of numbers, got {results!r}")
            for name, value in flatten_results_dict(results).items():
                self.trainer.storage.put_scalar(name, _number(name, value), smoothing_hint=False)
        # Processes without a part in the evaluation wait here instead of running into a timeout in the next iteration.
        comm.synchronize()


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the evaluation must return numbers, got {value!r} for {name!r}") from error
