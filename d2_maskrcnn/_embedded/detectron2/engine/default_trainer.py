"""The trainer that most programs use: everything from the config, each part by a method that can be overwritten."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import hooks
from detectron2.engine.setup import create_ddp_model, default_writers
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)

Results = dict[str, Any]


class DefaultTrainer(TrainerBase):
    """Trains what ``cfg`` describes.

    It builds model, optimizer, data loader and schedule, and registers the usual hooks. To change a part, overwrite the
    method that builds it::

        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()

    Args:
        cfg: the whole config; scaled by :meth:`auto_scale_workers`.

    Attributes:
        cfg: the config in use.
        scheduler: of the learning rate.
        checkpointer: saves and loads the model together with this trainer's state.
        start_iter: where :meth:`train` begins.
        max_iter: where it ends.
    """

    # On the class, since subclasses may set up their parts without calling __init__.
    _last_eval_results: Results | None = None

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger(distributed_rank=comm.get_rank())  # a program without default_setup should see something too
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = self._build_inner_trainer(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @staticmethod
    def _build_inner_trainer(
        cfg: CfgNode, model: nn.Module, data_loader: Iterable[Any], optimizer: torch.optim.Optimizer
    ) -> SimpleTrainer:
        if not cfg.SOLVER.AMP.ENABLED:
            return SimpleTrainer(model, data_loader, optimizer)
        on_cpu = next(model.parameters()).device.type == "cpu"
        return AMPTrainer(model, data_loader, optimizer, precision=torch.bfloat16 if on_cpu else torch.float16)

    @property
    def model(self) -> nn.Module:
        """The model, wrapped for several processes where there are several."""
        return self._trainer.model

    @property
    def data_loader(self) -> Iterable[Any]:
        """Of the training."""
        return self._trainer.data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the training."""
        return self._trainer.optimizer

    def resume_or_load(self, resume: bool = True) -> None:
        """Loads the last checkpoint of ``OUTPUT_DIR`` with all states, or else the weights ``MODEL.WEIGHTS`` alone.

        Args:
            resume: False never looks for a checkpoint in ``OUTPUT_DIR``.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # a checkpoint names the last finished iteration

    def build_hooks(self) -> list[HookBase | None]:
        """Timer, schedule, batch statistics, checkpoints, evaluation and writers, in this order.

        Checkpoints come before the evaluation, so that what was evaluated is on the disk; writers come last, so that
        they write what the evaluation found.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # the loader of PreciseBN is read seldom: workers would sit on memory
        is_main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._build_precise_bn(cfg) if cfg.TEST.PRECISE_BN.ENABLED else None,
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if is_main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._test_and_remember),
            hooks.PeriodicWriter(self.build_writers(), period=20) if is_main else None,
        ]

    def _build_precise_bn(self, cfg: CfgNode) -> HookBase:
        return hooks.PreciseBN(
            cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER
        )

    def _test_and_remember(self) -> Results:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        """Writers for the terminal, ``metrics.json`` and TensorBoard."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Results | None:  # type: ignore[override]
        """Trains from ``start_iter`` to ``max_iter``.

        Returns:
            The results of the last evaluation; None if there was none.
        """
        super().train(self.start_iter, self.max_iter)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            if not self._last_eval_results:
                raise RuntimeError("TEST.EXPECTED_RESULTS is set, but the training ended without an evaluation")
            verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def run_step(self) -> None:
        """One iteration."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, and the inner trainer's state with the optimizer's."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of ``cfg``, which is logged."""
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of ``cfg`` for ``model``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The learning-rate schedule of ``cfg``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """The loader of ``DATASETS.TRAIN``, without end."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """The loader of one dataset of ``DATASETS.TEST``, each image once."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator | list[DatasetEvaluator]:
        """The evaluator of one dataset; to be overwritten."""
        raise NotImplementedError(f"{cls.__name__}.build_evaluator is not written: {dataset_name} cannot be evaluated")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | DatasetEvaluator | None = None
    ) -> Results:
        """Evaluates ``model`` on each of ``DATASETS.TEST``.

        Args:
            cfg: names the datasets.
            model: may be wrapped.
            evaluators: one for each dataset; None builds them, and leaves out datasets for which that is not written.

        Returns:
            The results of each dataset by its name, or those of the only dataset themselves.

        Raises:
            ValueError: the number of evaluators is not that of the datasets.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(
                f"{len(evaluators)} evaluators for the {len(cfg.DATASETS.TEST)} datasets {cfg.DATASETS.TEST}"
            )
        results: Results = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
            except NotImplementedError as error:
                logger.warning("%s", error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                logger.info("Results on %s:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scales the schedule when it was written for another number of processes.

        Batch size and learning rate grow with the number of processes and all lengths of time shrink (the linear rule
        of Goyal et al. 2017, section 2.1), so a config for 8 GPUs does the like on 1. It is on where
        ``SOLVER.REFERENCE_WORLD_SIZE`` is above 0.

        Args:
            cfg: stays as it is.
            num_workers: number of processes of this training.

        Returns:
            ``cfg`` itself if nothing is to be scaled, else a scaled copy whose ``REFERENCE_WORLD_SIZE`` is
            ``num_workers``.

        Raises:
            ValueError: the batch size is no multiple of ``REFERENCE_WORLD_SIZE``.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference != 0:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
            )
        cfg = cfg.clone()
        was_frozen = cfg.is_frozen()
        cfg.defrost()
        scale = num_workers / reference
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR *= scale
        solver.MAX_ITER = round(solver.MAX_ITER / scale)
        solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers
        logger.info(
            "Scaled from %d to %d processes: batch size %d, learning rate %g, %d iterations, %d of warm-up",
            reference,
            num_workers,
            solver.IMS_PER_BATCH,
            solver.BASE_LR,
            solver.MAX_ITER,
            solver.WARMUP_ITERS,
        )
        if was_frozen:
            cfg.freeze()
        return cfg
