"""The training loop: Detectron2's ``DefaultTrainer`` with data, steps and checkpoints that survive being killed."""

import logging
import os
import weakref
from typing import Any

import torch
from torch import nn

from d2_maskrcnn._bootstrap import engine_info
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.config.validation import check_values
from d2_maskrcnn.data import build_checked_test_loader, build_resumable_train_loader
from d2_maskrcnn.distributed import distribute
from d2_maskrcnn.engine.hooks.best_checkpoint import BestCheckpoint, build_judges
from d2_maskrcnn.engine.hooks.ema import UpdateAverage, WeightAverage
from d2_maskrcnn.engine.hooks.resumable import (
    DrawPredictions,
    EvaluateAtEnd,
    ResumablePreciseBN,
    SaveCheckpoints,
    WriteEvents,
)
from d2_maskrcnn.engine.lr_scaling import scale_learning_rate
from d2_maskrcnn.engine.optimizer import build_optimizer
from d2_maskrcnn.engine.randomness import choose_seed
from d2_maskrcnn.engine.signals import anyone_stopped, stop_on_signals
from d2_maskrcnn.engine.train_step import TrainStep
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.evaluation.evaluator import FigureEvaluator
from d2_maskrcnn.evaluation.tta import TestTimeAugmentation
from d2_maskrcnn.evaluation.validation_loss import Evaluate, validation_losses
from d2_maskrcnn.loggers.wandb import WandbHook, WandbRun, WandbWriter
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import COCOEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains, evaluates and resumes the model that a config describes, on either engine.

    A training that is killed and started again with ``resume`` continues as if nothing had happened: batches,
    augmentations and sampled boxes are functions of (seed, iteration), and the seed travels in the checkpoint. On a CPU
    its weights equal those of an uninterrupted training bit for bit.

    Args:
        cfg: a frozen config; datasets must be registered.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own __init__ would build Detectron2's loader, step and checkpointer; theirs are replaced
        # here.
        TrainerBase.__init__(self)
        check_values(cfg)
        self.cfg = scale_learning_rate(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))
        self.seed = comm.all_gather(choose_seed(self.cfg.SEED))[0]
        self.start_iter, self.max_iter = 0, self.cfg.SOLVER.MAX_ITER
        self.stop_requested = False
        self._last_eval_results: Any = None

        torch.manual_seed(self.seed)  # the seed, which checkpoints keep, gives the first weights back
        self.initial_seed: int | None = self.seed
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        self.train_loader = build_resumable_train_loader(self.cfg, self.seed)
        self._trainer: TrainStep = TrainStep(
            distribute(model),
            self.train_loader,
            optimizer,
            seed=self.seed,
            amp_dtype=_amp_dtype(self.cfg),
            accumulate=self.cfg.D2_MASKRCNN.SOLVER.ACCUMULATE,
            max_grad_norm=self.cfg.D2_MASKRCNN.SOLVER.MAX_GRAD_NORM,
        )
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        ema = self.cfg.D2_MASKRCNN.EMA
        self.average = WeightAverage(model, ema.DECAY) if ema.ENABLED else None
        states = {"ema": self.average} if self.average else {}
        self.checkpointer = build_checkpointer(self.cfg, model, trainer=weakref.proxy(self), **states)
        wandb = self.cfg.D2_MASKRCNN.WANDB
        use_wandb = wandb.ENABLED and wandb.MODE != "disabled" and comm.is_main_process()
        self.wandb_run = WandbRun(self.cfg) if use_wandb else None
        self.resumed = False
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`d2_maskrcnn.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> COCOEvaluator:
        """COCO's measure for boxes and masks; detections and figures are written under ``OUTPUT_DIR/inference``."""
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        node = cfg.D2_MASKRCNN.EVALUATION
        # Named, not taken from the detections: early in a training there may be none.
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        if not node.FIGURES:
            return COCOEvaluator(dataset_name, tasks, output_dir=folder)
        return FigureEvaluator(
            dataset_name, folder, tasks, confusion_iou=node.CONFUSION_IOU, confusion_score=node.CONFUSION_SCORE
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Detectron2's test loader over a mapper that names the images it cannot read."""
        return build_checked_test_loader(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase | None]:
        """In this order: what changes weights, what evaluates, what judges, what saves, what writes.

        So a checkpoint knows all that was known when it was saved, and a resumed training judges as this one does.
        """
        cfg, is_main = self.cfg, comm.is_main_process()
        evaluates = bool(cfg.DATASETS.TEST)
        judges = build_judges(cfg) if evaluates else []
        best = next((hook for hook in judges if isinstance(hook, BestCheckpoint)), None)
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._build_precise_bn_hook() if cfg.TEST.PRECISE_BN.ENABLED else None,
            UpdateAverage(self.average) if self.average else None,
            Evaluate(self._evaluate) if evaluates else None,
            *judges,
            EvaluateAtEnd("tta", self._evaluate_augmented) if evaluates and cfg.TEST.AUG.ENABLED else None,
            SaveCheckpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if is_main else None,
            DrawPredictions() if is_main else None,
            WandbHook(self.wandb_run, best) if self.wandb_run else None,
            self._build_inspection() if cfg.D2_MASKRCNN.INSPECT.ENABLED and is_main else None,
            WriteEvents(self.build_writers(), period=cfg.D2_MASKRCNN.LOG_PERIOD) if is_main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        """W&B where it is switched on, then Detectron2's: terminal, ``metrics.json``, TensorBoard."""
        own = [WandbWriter(self.wandb_run)] if self.wandb_run else []
        return [*own, *super().build_writers()]

    def _build_precise_bn_hook(self) -> HookBase:
        cfg = self.cfg.TEST
        return ResumablePreciseBN(
            cfg.EVAL_PERIOD, self.model, build_resumable_train_loader(self.cfg, self.seed), cfg.PRECISE_BN.NUM_ITER
        )

    def _build_inspection(self) -> HookBase:
        # Imported here: the inspection's own modules need this package.
        from d2_maskrcnn.inspection.training import InspectTraining

        records: Any = self.train_loader.records
        return InspectTraining(self.cfg, images_in_epoch=len(records))

    def _evaluate(self) -> dict[str, Any]:
        """COCO's measure and the validation losses, of the weights and of their average; every process calls it."""
        self._last_eval_results = self.test(self.cfg, self.model)
        results = {**self._last_eval_results, **self._validation()}
        if self.average is not None:
            with self.average.applied():
                logger.info("The same with averaged weights")
                results["ema"] = {**self.test(self.cfg, self.model, folder="inference_ema"), **self._validation()}
        return results

    def _evaluate_augmented(self) -> dict[str, Any]:
        results = self.test_with_augmentation(self.cfg, self.model)
        if self.average is not None:
            with self.average.applied():
                logger.info("The same with averaged weights")
                augmented = self.test_with_augmentation(self.cfg, self.model, folder="inference_tta_ema")
                results = {**results, "ema": augmented}
        return results

    def _validation(self) -> dict[str, Any]:
        if not self.cfg.D2_MASKRCNN.VALIDATION_LOSS:
            return {}
        losses = validation_losses(self.cfg, self.model)
        if losses:
            logger.info("Validation losses: %s", ", ".join(f"{name} {value:.4g}" for name, value in losses.items()))
        return {"validation": losses}

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None, folder: str = "inference") -> dict[str, Any]:
        """Detectron2's ``DefaultTrainer.test``; without ``evaluators``, detections go to ``OUTPUT_DIR/folder``, or to
        a folder in it for each dataset where there are several.
        """
        if evaluators is None:
            names = list(cfg.DATASETS.TEST)
            paths = [os.path.join(cfg.OUTPUT_DIR, folder, *([name] if len(names) > 1 else [])) for name in names]
            evaluators = [cls.build_evaluator(cfg, name, path) for name, path in zip(names, paths, strict=True)]
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_augmentation(cls, cfg: CfgNode, model: nn.Module, folder: str = "inference_tta") -> dict[str, Any]:
        """:meth:`test` of the model under ``TEST.AUG``."""
        logger.info("The same with test-time augmentation")
        return cls.test(cfg, TestTimeAugmentation(cfg, model), folder=folder)

    def resume_or_load(self, resume: bool = True) -> None:
        """Loads ``MODEL.WEIGHTS`` or, with ``resume``, the last checkpoint of ``OUTPUT_DIR`` if there is one.

        Raises:
            UserError: without ``resume``, if ``OUTPUT_DIR`` holds a training that would be overwritten.
        """
        if not resume and self.checkpointer.has_checkpoint():
            raise UserError(
                f"OUTPUT_DIR {self.cfg.OUTPUT_DIR} already holds a training "
                f"({self.checkpointer.get_checkpoint_file()}): "
                "add --resume to go on with it, or name another folder (OUTPUT_DIR path)."
            )
        super().resume_or_load(resume)
        self.resumed = resume
        if self.average is not None and self.average.updates == 0:
            self.average.restart()  # from the weights that were loaded, not from those the model was made with
        self._trainer.seed = self.seed  # of the checkpoint, where there was one
        self.train_loader.set_seed(self.seed)
        self.train_loader.set_start_iter(self.start_iter)

    def train(self) -> Any:  # type: ignore[override]
        """Runs from ``start_iter`` to ``max_iter``, or to the end of the iteration in which Ctrl-C or SIGTERM came.

        Returns:
            The results of the last evaluation, if there was one.

        Raises:
            SystemExit: it was stopped by a signal; a checkpoint has been saved.
        """
        logger.info("Training iterations %d to %d with seed %d", self.start_iter, self.max_iter - 1, self.seed)
        self.iter, self.max_iter = self.start_iter, max(self.max_iter, self.start_iter)
        with stop_on_signals(self), EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter and not anyone_stopped(self.stop_requested):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            finally:
                try:
                    self.after_train()  # self.iter == self.max_iter tells the hooks that training came to its end
                finally:
                    if self.wandb_run is not None:
                        self.wandb_run.finish()
        if self.iter < self.max_iter:
            self._save_and_leave()
        results = getattr(self, "_last_eval_results", None)
        if results and comm.is_main_process() and self.cfg.TEST.EXPECTED_RESULTS:
            verify_results(self.cfg, results)
        return results

    def _save_and_leave(self) -> None:
        if self.iter == 0:
            logger.info("Stopped before the first iteration: there is nothing to save.")
            raise SystemExit(130)
        self.iter -= 1  # the iteration that was to come; checkpoints are named and counted by the last finished one
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        comm.synchronize()
        logger.info(
            "Stopped after iteration %d and saved it. Start again with --resume to go on from there.", self.iter
        )
        raise SystemExit(130)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the training beside the weights: iteration, hooks, optimiser and seeds."""
        return {**super().state_dict(), "seed": self.seed, "initial_seed": self.initial_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self.seed = state_dict.get("seed", self.seed)
        self.initial_seed = state_dict.get("initial_seed")  # None: how the first weights were drawn is not known


def build_checkpointer(cfg: CfgNode, model: nn.Module, **checkpointables: Any) -> MaskRCNNCheckpointer:
    """A checkpointer for ``OUTPUT_DIR`` whose files also tell the engine and the names of the classes."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes") if cfg.DATASETS.TRAIN else None
    return MaskRCNNCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        save_to_disk=comm.is_main_process(),
        class_names=names,
        engine=engine_info().as_dict(),
        **checkpointables,
    )


def _amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.D2_MASKRCNN.SOLVER.AMP_DTYPE
    if name == "auto":
        name = "float16" if str(cfg.MODEL.DEVICE).startswith("cuda") else "bfloat16"
    return torch.float16 if name == "float16" else torch.bfloat16
