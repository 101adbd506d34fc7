"""Detectron2's ``DefaultTrainer`` with a loader, an iteration and checkpoints that make resuming exact."""

import functools
import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from d2_maskrcnn import compat
from d2_maskrcnn.checkpoint import build_checkpointer
from d2_maskrcnn.config.validation import check_values, warn_ignored_keys
from d2_maskrcnn.data import build_checked_test_loader, build_resumable_train_loader
from d2_maskrcnn.distributed import distribute
from d2_maskrcnn.engine.console import ShowProgress, is_active, printing_to_log, show_results
from d2_maskrcnn.engine.hooks.best_checkpoint import BestCheckpoint
from d2_maskrcnn.engine.hooks.early_stopping import EarlyStopping, SaveCheckpoints
from d2_maskrcnn.engine.hooks.ema import UpdateAverage, WeightAverage, with_average
from d2_maskrcnn.engine.hooks.evaluation import Evaluate, EvaluateAtEnd, ResumablePreciseBN, finite_numbers
from d2_maskrcnn.engine.hooks.reports import DrawPredictions, Tolerant, WriteEvents
from d2_maskrcnn.engine.optimizer import build_optimizer, scale_learning_rate
from d2_maskrcnn.engine.output_dir import locked_output_dir, refuse_overwriting
from d2_maskrcnn.engine.resume import (
    apply_hyperparameters,
    describe_checkpoint,
    describe_config,
    describe_run,
    hyperparameters,
    log_changes,
    log_start,
    write_config,
)
from d2_maskrcnn.engine.signals import anyone_stopped, stop_on_signals
from d2_maskrcnn.engine.train_step import TrainStep, amp_dtype, choose_seed
from d2_maskrcnn.errors import EXIT_INTERRUPTED, output_is_closed
from d2_maskrcnn.evaluation.evaluator import build_evaluator
from d2_maskrcnn.evaluation.tta import TestTimeAugmentation
from d2_maskrcnn.evaluation.validation_loss import validation_losses
from d2_maskrcnn.loggers.wandb import WandbHook, WandbRun, WandbWriter
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import COCOEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Train, evaluate and resume the model of a config, on either engine.

    A training that is killed and resumed continues as if it had not been interrupted: batches, augmentation and sampled
    boxes depend only on (seed, iteration), and checkpoints contain the seed. On a CPU, with the same number of
    processes, the weights equal those of an uninterrupted training bit for bit.

    Args:
        cfg: frozen config; its datasets are registered.
        report_hooks: further hooks of the main process that only observe the training, such as
            :func:`d2_maskrcnn.inspection.training.inspection_hooks` returns. They are called before the writers, and
            their failures are warnings.
    """

    def __init__(self, cfg: CfgNode, report_hooks: Sequence[HookBase] = ()) -> None:
        # DefaultTrainer.__init__ would build Detectron2's loader, step and checkpointer, which are replaced here.
        TrainerBase.__init__(self)
        check_values(cfg)
        warn_ignored_keys(cfg)
        self.cfg = scale_learning_rate(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))
        self.seed = comm.all_gather(choose_seed(self.cfg.SEED))[0]
        self.start_iter, self.max_iter = 0, self.cfg.SOLVER.MAX_ITER
        self.stop_requested = self.resumed = False
        self._resumed_run: Any = None  # run_description of the resumed checkpoint
        self.last_results: dict[str, Any] | None = None  # of the latest evaluation, as :meth:`test` returns them
        torch.manual_seed(self.seed)  # checkpoints contain the seed, so the initial weights can be reproduced
        self.initial_seed: int | None = self.seed
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        self.train_loader = build_resumable_train_loader(self.cfg, self.seed)
        node = self.cfg.D2_MASKRCNN.SOLVER
        options = {"accumulate": node.ACCUMULATE, "max_grad_norm": node.MAX_GRAD_NORM, "amp_dtype": amp_dtype(self.cfg)}
        self.train_step = TrainStep(distribute(model), self.train_loader, optimizer, seed=self.seed, **options)
        compat.set_train_step(self, self.train_step)
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        self.average = WeightAverage.from_config(self.cfg, model)
        states = {"ema": self.average} if self.average else {}
        self.checkpointer = build_checkpointer(self.cfg, model, trainer=weakref.proxy(self), **states)
        self.wandb_run = WandbRun.from_config(self.cfg) if comm.is_main_process() else None
        self.early_stopping = EarlyStopping.from_config(self.cfg)
        self.best_checkpoint = BestCheckpoint.from_config(self.cfg)
        self.report_hooks = list(report_hooks)
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Call :func:`d2_maskrcnn.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> COCOEvaluator:
        """Build the evaluator; by default it writes detections and figures under ``OUTPUT_DIR/inference``."""
        return build_evaluator(cfg, dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build Detectron2's test loader with a mapper that names images it cannot read."""
        return build_checked_test_loader(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase | None]:
        """Build the hooks: first what changes weights, then what evaluates, judges, saves, reports and writes.

        A checkpoint therefore contains everything that was known in its iteration.
        """
        cfg, is_main = self.cfg, comm.is_main_process()
        evaluates = bool(cfg.DATASETS.TEST)
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            Tolerant(ShowProgress(cfg, self.images_in_epoch)) if is_active() else None,
            ResumablePreciseBN(cfg, self.model) if cfg.TEST.PRECISE_BN.ENABLED else None,
            UpdateAverage(self.average) if self.average else None,
            Evaluate(self.evaluate) if evaluates else None,
            self.early_stopping,  # before the best checkpoint, which contains its state
            self.best_checkpoint,
            EvaluateAtEnd("tta", self._evaluate_augmented) if evaluates and cfg.TEST.AUG.ENABLED else None,
            SaveCheckpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if is_main else None,
            *(self._build_report_hooks() if is_main else []),
        ]

    def _build_report_hooks(self) -> list[HookBase]:
        if self.cfg.D2_MASKRCNN.INSPECT.ENABLED and not self.report_hooks:
            logger.info("D2_MASKRCNN.INSPECT.ENABLED has no effect: Trainer was given no report_hooks for it")
        wandb = [WandbHook(self.wandb_run, self.best_checkpoint)] if self.wandb_run else []
        reports: list[HookBase] = [DrawPredictions(), *wandb, *self.report_hooks]
        writers = WriteEvents(self.build_writers(), period=self.cfg.D2_MASKRCNN.LOG_PERIOD)
        return [*map(Tolerant, reports), writers]

    def build_writers(self) -> list[EventWriter]:
        """Build the W&B writer, if enabled, and Detectron2's: terminal, ``metrics.json``, TensorBoard."""
        return [*([WandbWriter(self.wandb_run)] if self.wandb_run else []), *super().build_writers()]

    def evaluate(self) -> dict[str, Any]:
        """Compute COCO's AP and the validation losses, also of the averaged weights; every process must call it."""
        self.last_results = self.test(self.cfg, self.model)
        results = {**self.last_results, **self._validation()}
        test_average = functools.partial(self.test, self.cfg, self.model, folder="inference_ema")
        results |= with_average(self.average, lambda: {**test_average(), **self._validation()})
        self.checkpointer.metrics = finite_numbers(results)
        if is_active():
            done = min(self.iter + 1, self.max_iter)  # a resumed training may have nothing left to do
            epochs = done * self.cfg.SOLVER.IMS_PER_BATCH / self.images_in_epoch
            show_results(results, f"Evaluation after epoch {epochs:.1f} (iteration {done})")
        return results

    def _evaluate_augmented(self) -> dict[str, Any]:
        test = functools.partial(self.test_with_augmentation, self.cfg, self.model)
        return {**test(), **with_average(self.average, lambda: test(folder="inference_tta_ema"))}

    def _validation(self) -> dict[str, Any]:
        if not self.cfg.D2_MASKRCNN.VALIDATION_LOSS:
            return {}
        losses = validation_losses(self.cfg, self.model)
        if losses:
            logger.info("Validation losses: %s", ", ".join(f"{name} {value:.4g}" for name, value in losses.items()))
        return {"validation": losses}

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None, folder: str = "inference") -> dict[str, Any]:
        """Evaluate ``model`` on ``DATASETS.TEST``.

        Args:
            cfg: names the datasets.
            model: may be wrapped in DistributedDataParallel.
            evaluators: see ``DefaultTrainer.test``; by default one per dataset, which writes to
                ``OUTPUT_DIR/folder`` or, if there are several datasets, to ``OUTPUT_DIR/folder/<dataset>``.
            folder: see ``evaluators``.

        Returns:
            The results of the dataset, or of each dataset by name if there are several.
        """
        if evaluators is None:
            names = list(cfg.DATASETS.TEST)
            paths = [os.path.join(cfg.OUTPUT_DIR, folder, *([name] if len(names) > 1 else [])) for name in names]
            evaluators = [cls.build_evaluator(cfg, name, path) for name, path in zip(names, paths, strict=True)]
        with printing_to_log():  # pycocotools prints
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_augmentation(cls, cfg: CfgNode, model: nn.Module, folder: str = "inference_tta") -> dict[str, Any]:
        """Evaluate ``model`` with the test-time augmentation of ``TEST.AUG``; see :meth:`test`."""
        logger.info("Evaluating with test-time augmentation")
        return cls.test(cfg, TestTimeAugmentation(cfg, model), folder=folder)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS`` or, with ``resume``, the last checkpoint of ``OUTPUT_DIR`` if there is one.

        Raises:
            UserError: ``OUTPUT_DIR`` contains a training that would be overwritten without ``resume``.
        """
        if not resume:
            refuse_overwriting(self.cfg.OUTPUT_DIR)
        continues = resume and self.checkpointer.has_checkpoint()
        super().resume_or_load(resume)
        self.resumed = resume
        if continues and comm.is_main_process():
            before = describe_checkpoint(self.checkpointer.loaded_metadata, self._resumed_run)
            log_changes(before, {**describe_config(self.cfg.dump()), **self.run_description})
        if self.average is not None and self.average.updates == 0:
            self.average.restart()  # from the loaded weights instead of the initial ones
        self.train_step.seed = self.seed  # the checkpoint's, if one was loaded
        self.train_loader.set_seed(self.seed)
        self.train_loader.set_start_iter(self.start_iter)

    def train(self) -> Any:  # type: ignore[override]
        """Run from ``start_iter`` to ``max_iter``, or to the end of the iteration in which a stop is requested.

        Ctrl-C, SIGTERM, SIGHUP and a closed standard output request a stop.

        Returns:
            The results of the last evaluation; None if there was none.

        Raises:
            UserError: another process uses ``OUTPUT_DIR``; or see :meth:`TrainStep.run_step`.
            SystemExit: stopped on request; a checkpoint was saved.
        """
        with locked_output_dir(self.cfg.OUTPUT_DIR):
            if self.early_stopping is None or not self.early_stopping.is_exhausted():  # else its hook logs that
                log_start(self.start_iter, self.max_iter, self.seed)
            if comm.is_main_process():
                write_config(self.cfg, self.seed, is_new=self.start_iter == 0)
            self._run_iterations()
            if self.iter < self.max_iter:
                self._save_and_exit()
        if self.last_results and comm.is_main_process() and self.cfg.TEST.EXPECTED_RESULTS:
            verify_results(self.cfg, self.last_results)
        return self.last_results

    def _run_iterations(self) -> None:
        self.iter, self.max_iter = self.start_iter, max(self.max_iter, self.start_iter)
        with stop_on_signals(self), EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter and not self._is_stopped():
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            finally:
                try:
                    self.after_train()  # hooks recognize the regular end by self.iter == self.max_iter
                finally:
                    if self.wandb_run is not None:
                        self.wandb_run.finish()

    def _is_stopped(self) -> bool:
        self.stop_requested = anyone_stopped(self.stop_requested or output_is_closed())
        return self.stop_requested

    def after_train(self) -> None:
        """Call the hooks; what they log belongs to the last iteration that was finished."""
        self.storage.iter = max(self.iter - 1, 0)
        for hook in compat.registered_hooks(self):
            hook.after_train()

    def _save_and_exit(self) -> None:
        if self.iter == 0:
            logger.info("Stopped before the first iteration: nothing to save.")
            raise SystemExit(EXIT_INTERRUPTED)
        self.iter -= 1  # checkpoints are named after the last iteration that was finished
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        comm.synchronize()
        logger.info("Stopped after iteration %d; saved as model_%07d.pth.", self.iter + 1, self.iter)
        raise SystemExit(EXIT_INTERRUPTED)

    @functools.cached_property
    def run_description(self) -> dict[str, str]:
        """What this training depends on beside its config; stored in checkpoints and compared when they are resumed."""
        return describe_run(self.cfg, self.images_in_epoch, comm.get_world_size())

    @property
    def images_in_epoch(self) -> int:
        """Number of training images, at least 1."""
        records: Any = self.train_loader.records
        return max(len(records), 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the training state beside the weights: iteration, hooks, optimizer, seeds and description."""
        own = {"seed": self.seed, "initial_seed": self.initial_seed, "run": self.run_description}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, except what the config sets: learning rates, schedule, ..."""
        configured = hyperparameters(self.optimizer)
        super().load_state_dict(state_dict)
        if self.iter < self.max_iter:  # a schedule is not defined beyond its end
            apply_hyperparameters(self.optimizer, self.scheduler, configured, finished=self.iter + 1)
        self.seed = state_dict.get("seed", self.seed)
        self.initial_seed = state_dict.get("initial_seed")  # None: the seed of the initial weights is unknown
        self._resumed_run = state_dict.get("run")
