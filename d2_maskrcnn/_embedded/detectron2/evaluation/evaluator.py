"""Run a model on a dataset and pass its outputs to evaluators."""

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from detectron2._names import lookup
from detectron2.utils import comm

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

logger = logging.getLogger(__name__)

Callbacks = Mapping[str, Callable[[], None]]


class DatasetEvaluator:
    """Collect a model's outputs (:meth:`process`), and compute results from them at the end (:meth:`evaluate`)."""

    def reset(self) -> None:
        """Remove everything collected; called before a run."""

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Collect one batch.

        Args:
            inputs: inputs of the model.
            outputs: outputs of the model, one per input.
        """

    def evaluate(self) -> Mapping[str, Any] | None:
        """Return the results by task and metric: ``{"bbox": {"AP": 40.0}}``. Called once, after all batches.

        If there are several processes, those that do not compute results return None.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        """Reset all evaluators."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Pass the batch to all evaluators."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> Mapping[str, Any]:
        """Return the merged results of all evaluators.

        Raises:
            ValueError: two evaluators have results of the same name.
        """
        results: dict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            found = evaluator.evaluate()
            if not comm.is_main_process() or found is None:
                continue
            doubled = results.keys() & found.keys()
            if doubled:
                raise ValueError(f"several evaluators have results of the names {sorted(doubled)}")
            results.update(found)
        return results


class _Clock:
    """Measure the parts of an evaluation's time, and estimate the remaining time."""

    PARTS = ("data", "compute", "eval")
    LOG_SECONDS = 5.0  # between two progress messages

    def __init__(self, total: int, warmup: int) -> None:
        self.total = total
        self.next_log = 0.0
        self.warmup = warmup  # number of first batches that are not measured, since they are slow
        self.restart()

    def restart(self) -> None:
        self.start = self.last = time.perf_counter()
        self.counted = 0
        self.seconds = dict.fromkeys(self.PARTS, 0.0)

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    def finish_batch(self, index: int) -> None:
        if index < self.warmup:
            self.restart()
            return
        self.counted += 1

    def log_progress(self, index: int) -> None:
        now = time.perf_counter()
        if self.counted == 0 or now < self.next_log:
            return
        self.next_log = now + self.LOG_SECONDS
        seconds_per_batch = (now - self.start) / self.counted
        data, compute, evaluate = (self.seconds[part] / self.counted for part in self.PARTS)
        logger.info(
            "Inference done %d/%d. Data %.4f, model %.4f, evaluator %.4f, all %.4f s/batch. ETA %s",
            index + 1,
            self.total,
            data,
            compute,
            evaluate,
            seconds_per_batch,
            _whole_seconds(seconds_per_batch * (self.total - index - 1)),
        )

    def log_total(self) -> None:
        count = max(self.counted, 1)
        for name, seconds in (("", time.perf_counter() - self.start), (" of the model alone", self.seconds["compute"])):
            logger.info(
                "Inference time%s: %s (%.6f s/batch on each of %d processes)",
                name,
                _whole_seconds(seconds),
                seconds / count,
                comm.get_world_size(),
            )


def _whole_seconds(seconds: float) -> timedelta:
    return timedelta(seconds=int(seconds))


def inference_on_dataset(
    model: Callable[[Any], Any] | nn.Module,
    data_loader: Iterable[Any],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Callbacks | None = None,
) -> Mapping[str, Any]:
    """Run ``model`` on all batches and evaluate its outputs.

    Args:
        model: called with each batch. A ``nn.Module`` is set to evaluation mode; its modes are restored afterwards.
        data_loader: has a length; if there are several processes, each has its share of the data.
        evaluator: one, several, or None to run the model only.
        callbacks: functions called at ``"on_start"``, ``"before_inference"``, ``"after_inference"`` and ``"on_end"``.

    Returns:
        The result of ``evaluator.evaluate()``; an empty dict for None.
    """
    callbacks = callbacks or {}
    evaluator = _as_one(evaluator)
    evaluator.reset()
    total = len(data_loader)  # type: ignore[arg-type]
    logger.info("Start inference on %d batches", total)
    clock = _Clock(total, warmup=min(5, max(total - 1, 0)))
    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        _call(callbacks, "on_start")
        for index, inputs in enumerate(data_loader):
            clock.lap("data")
            evaluator.process(inputs, _infer(model, inputs, callbacks, clock))
            clock.lap("eval")
            clock.finish_batch(index)
            clock.log_progress(index)
        _call(callbacks, "on_end")
    clock.log_total()
    results = evaluator.evaluate()
    return {} if results is None else results


def _infer(model: Callable[[Any], Any], inputs: Any, callbacks: Callbacks, clock: _Clock) -> Any:
    _call(callbacks, "before_inference")
    outputs = model(inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # kernels run asynchronously: their time would count as the evaluator's
    _call(callbacks, "after_inference")
    clock.lap("compute")
    return outputs


def _as_one(evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None) -> DatasetEvaluator:
    if isinstance(evaluator, DatasetEvaluator):
        return evaluator
    return DatasetEvaluators(evaluator or [])


def _call(callbacks: Callbacks, moment: str) -> None:
    if moment in callbacks:
        callbacks[moment]()


@contextlib.contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode in a block; afterwards, restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


__getattr__ = lookup(__name__)
