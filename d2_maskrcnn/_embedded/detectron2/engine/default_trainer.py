"""Train what a config describes; subclasses replace single parts."""

import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import bfloat16, float16, nn
from torch.optim import Optimizer

from detectron2 import data, modeling, solver
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.engine.setup import create_ddp_model, default_writers
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)

Results = dict[str, Any]

# What grows and what shrinks with the number of processes, see DefaultTrainer.auto_scale_workers.
_GROWS = ("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR")
_SHRINKS = (
    "SOLVER.MAX_ITER",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)


class DefaultTrainer(TrainerBase):
    """Build model, optimizer, loader, schedule and hooks from a config, and train.

    Override a ``build_...`` method to replace a part::

        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()

    Args:
        cfg: the whole config.

    Attributes:
        cfg: the config in use, scaled by :meth:`auto_scale_workers`.
        scheduler: of the learning rate.
        checkpointer: saves and loads the model and the state of this trainer.
        start_iter, max_iter: the first iteration of :meth:`train`, and the one before which it ends.
    """

    # On the class, since subclasses may set up their parts without calling __init__.
    _last_eval_results: Results | None = None
    _trainer: SimpleTrainer

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger(distributed_rank=comm.get_rank())  # for programs that do not call default_setup
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self._trainer = self._build_step_trainer(cfg)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.checkpointer = DetectionCheckpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def _build_step_trainer(self, cfg: CfgNode) -> SimpleTrainer:
        bare = self.build_model(cfg)
        updates, batches = self.build_optimizer(cfg, bare), self.build_train_loader(cfg)
        wrapped = create_ddp_model(bare, broadcast_buffers=False)
        if not cfg.SOLVER.AMP.ENABLED:
            return SimpleTrainer(wrapped, batches, updates)
        on_cpu = next(bare.parameters()).device.type == "cpu"
        return AMPTrainer(wrapped, batches, updates, precision=bfloat16 if on_cpu else float16)

    @property
    def model(self) -> nn.Module:
        """The model, wrapped in DistributedDataParallel if there are several processes."""
        return self._trainer.model

    @property
    def data_loader(self) -> Iterable[Any]:
        """The loader of training batches."""
        return self._trainer.data_loader

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        return self._trainer.optimizer

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint in ``OUTPUT_DIR`` with all states if there is one, else ``MODEL.WEIGHTS``.

        Args:
            resume: False ignores checkpoints in ``OUTPUT_DIR``.
        """
        continues = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if continues:
            self.start_iter = self.iter + 1  # a checkpoint stores the last finished iteration

    def build_hooks(self) -> list[HookBase | None]:
        """Build timer, schedule, batch statistics, checkpoints, evaluation and writers, in this order.

        Checkpoints precede the evaluation, so that the evaluated weights are saved; writers come last and write what
        the evaluation found.
        """
        return list(self._default_hooks())

    def _default_hooks(self) -> Iterator[HookBase | None]:
        cfg, is_main = self.cfg, comm.is_main_process()
        yield hooks.IterationTimer()
        yield hooks.LRScheduler()
        yield self._precise_bn() if cfg.TEST.PRECISE_BN.ENABLED else None
        if is_main:
            yield hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
        yield hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)
        if is_main:
            yield hooks.PeriodicWriter(self.build_writers(), period=20)

    def _precise_bn(self) -> HookBase:
        alone, node = self.cfg.clone(), self.cfg.TEST
        alone.defrost()
        alone.DATALOADER.NUM_WORKERS = 0  # this loader is rarely read, and idle workers occupy memory
        return hooks.PreciseBN(node.EVAL_PERIOD, self.model, self.build_train_loader(alone), node.PRECISE_BN.NUM_ITER)

    def _evaluate(self) -> Results:
        latest = self._last_eval_results = self.test(self.cfg, self.model)
        return latest

    def build_writers(self) -> list[EventWriter]:
        """Build the writers to the terminal, ``metrics.json`` and TensorBoard."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Results | None:  # type: ignore[override]
        """Train from ``start_iter`` to ``max_iter``.

        Returns:
            The results of the last evaluation; None if there was none.
        """
        super().train(self.start_iter, self.max_iter)
        latest = self._last_eval_results
        if comm.is_main_process() and self.cfg.TEST.EXPECTED_RESULTS:
            if not latest:
                raise RuntimeError("TEST.EXPECTED_RESULTS is set, but the training ended without an evaluation")
            verify_results(self.cfg, latest)
        return latest

    def run_step(self) -> None:
        """Run one iteration."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the states of hooks, optimizer and gradient scaler."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build and log the model."""
        model = modeling.build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """Build the optimizer of ``model``."""
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> Any:
        """Build the schedule of the learning rate."""
        return solver.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """Build the endless loader of ``DATASETS.TRAIN``."""
        return data.build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """Build the loader that reads each image of a test dataset once."""
        return data.build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator | list[DatasetEvaluator]:
        """Build the evaluator of a test dataset; defined by subclasses."""
        raise NotImplementedError(f"{cls.__name__} does not define build_evaluator: {dataset_name} is not evaluated")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | DatasetEvaluator | None = None
    ) -> Results:
        """Evaluate ``model`` on the datasets ``DATASETS.TEST``.

        Args:
            cfg: names the datasets.
            model: may be wrapped in DistributedDataParallel.
            evaluators: one per dataset; None builds them, and skips datasets without :meth:`build_evaluator`.

        Returns:
            {dataset: results}, or the results themselves if there is one dataset.

        Raises:
            ValueError: the numbers of evaluators and datasets differ.
        """
        names = list(cfg.DATASETS.TEST)
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        if given is not None and len(given) != len(names):
            raise ValueError(f"{len(given)} evaluators for the {len(names)} datasets {cfg.DATASETS.TEST}")
        results: Results = {}
        for index, name in enumerate(names):
            results[name] = cls._test_one(cfg, model, name, given[index] if given else None)
        return results[names[0]] if len(names) == 1 else results

    @classmethod
    def _test_one(cls, cfg: CfgNode, model: nn.Module, name: str, evaluator: DatasetEvaluator | None) -> Any:
        loader = cls.build_test_loader(cfg, name)
        try:
            chosen = cls.build_evaluator(cfg, name) if evaluator is None else evaluator
        except NotImplementedError as error:
            logger.warning("%s", error)
            return {}
        found = inference_on_dataset(model, loader, chosen)
        if comm.is_main_process():
            logger.info("Evaluation results for %s in csv format:", name)
            print_csv_format(found)
        return found

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Adapt the schedule to another number of processes than it was written for.

        Batch size and learning rate are proportional to the number of processes, durations inversely proportional (the
        linear scaling rule of Goyal et al. 2017, section 2.1), so that a config for 8 GPUs trains similarly on 1. Only
        configs with ``SOLVER.REFERENCE_WORLD_SIZE`` above 0 are scaled.

        Args:
            cfg: not changed.
            num_workers: number of processes of this training.

        Returns:
            ``cfg`` itself if there is nothing to scale, else a scaled copy whose ``REFERENCE_WORLD_SIZE`` is
            ``num_workers``.

        Raises:
            ValueError: the batch size is not a multiple of ``REFERENCE_WORLD_SIZE``.
        """
        reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
        if reference in (0, num_workers):
            return cfg
        if batch % reference:
            raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} is not a multiple of REFERENCE_WORLD_SIZE {reference}")
        factors = dict.fromkeys(_GROWS, num_workers / reference) | dict.fromkeys(_SHRINKS, reference / num_workers)
        scaled = cfg.clone()
        scaled.defrost()
        scaled.SOLVER.REFERENCE_WORLD_SIZE = num_workers
        for key, factor in factors.items():
            section, name = key.split(".")
            scaled[section][name] = _scale(scaled[section][name], factor)
            logger.info("Scaled from %d to %d processes: %s %s", reference, num_workers, key, scaled[section][name])
        if cfg.is_frozen():
            scaled.freeze()
        return scaled


def _scale(value: Any, factor: float) -> Any:
    if isinstance(value, float):
        return value * factor
    return round(value * factor) if isinstance(value, int) else type(value)(round(step * factor) for step in value)
