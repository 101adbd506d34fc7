"""Train and evaluate in one call, from data alone or from a config."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from d2_maskrcnn.checkpoint import build_checkpointer
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import build_checked_test_loader, dataset_records
from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.data.discovery import find_test_data
from d2_maskrcnn.data.own_data import find_path
from d2_maskrcnn.distributed import run_together
from d2_maskrcnn.engine.console import console, duration, logging_to, show_platform, show_results
from d2_maskrcnn.engine.data_summary import describe_data, summarize
from d2_maskrcnn.engine.hooks.best_checkpoint import BEST_NAME
from d2_maskrcnn.engine.hooks.early_stopping import FINAL_NAME
from d2_maskrcnn.engine.output_dir import check_output_dir, locked_output_dir, refuse_overwriting
from d2_maskrcnn.engine.plan_file import SCRATCH, TrainingOptions, warn_of_changed_options, write_plan
from d2_maskrcnn.engine.setup import prepared
from d2_maskrcnn.engine.trainer import Trainer
from d2_maskrcnn.errors import UserError, warn_on_failure
from d2_maskrcnn.evaluation.evaluator import write_results
from d2_maskrcnn.evaluation.prediction_images import draw_test_sets
from d2_maskrcnn.evaluation.tiled import TiledModel, without_pixels
from d2_maskrcnn.model_loading import apply_precision, load_model, open_checkpoint
from d2_maskrcnn.runtimes import is_exported
from d2_maskrcnn.weights.checkpoint_files import stored_class_names, stored_metrics
from d2_maskrcnn.weights.download import is_remote
from d2_maskrcnn.weights.readers import read_weights
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

PLAN_NAME = "plan.yaml"

Hooks = Callable[[CfgNode], Sequence[HookBase]]


@dataclass(frozen=True)
class Training:
    """A training that has reached its end.

    Attributes:
        best: the checkpoint with the best metric; that of the last iteration if nothing was evaluated.
        metrics: finite numbers of the evaluation of ``best`` by name, such as ``segm/AP`` in percent.
        last: the checkpoint of the last iteration.
        output: folder of everything that was written.
    """

    best: Path
    metrics: dict[str, float]
    last: Path
    output: Path


def train(
    data: str | Path | None = None,
    *,
    val: str | Path | None = None,
    config: str | Path | None = None,
    weights: str | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[Any] = (),
    report_hooks: Hooks | None = None,
) -> Training:
    """Train a model on a dataset of any format, or as a config says.

    With ``data`` the schedule is planned from the number of images (see :mod:`d2_maskrcnn.engine.planning`), shown, and
    written to ``output/plan.yaml``, a config that can be edited and given as ``config``.

    Args:
        data: folder of the dataset, or the annotation file of its training data, see
            :func:`~d2_maskrcnn.data.discovery.find_training_data`; None for the datasets of ``config``.
        val: COCO JSON of the validation data; default: found near ``data``, or split off.
        config: config file or name; default: that of ``weights`` if they store one, else ``mrcnn_R101``.
        weights: weight file or address to start from, or "scratch"; default: those of ``config``, else COCO's, from the
            cache or the network, if available.
        epochs: passes over the training images; default: planned.
        batch_size: images per iteration, of all processes together; default: planned.
        image_size: shorter side of resized images in pixels; default: that of the config.
        output: folder for checkpoints and logs; default: ``OUTPUT_DIR``, with ``data`` ``output/<name of the data>``.
        resume: continue the training in ``output``, if there is one, with its plan.
        overrides: ``KEY, VALUE, ...``, which win over the plan.
        report_hooks: builds hooks that only observe, such as
            :func:`d2_maskrcnn.inspection.training.inspection_hooks`.

    Raises:
        UserError: the data, the config or the weights cannot be used, or ``output`` contains another training.
        SystemExit: stopped by a signal; a checkpoint was saved.
    """
    if data is None:
        extra: list[Any] = [] if output is None else ["OUTPUT_DIR", output]
        extra += [] if weights is None else ["MODEL.WEIGHTS", "" if weights == SCRATCH else weights]
        if config is None or (epochs, batch_size, image_size, val) != (None,) * 4:
            raise UserError("train: expected data, or a config without epochs, batch_size, image_size and val.")
        return train_config(load_config(str(config), [*map(str, extra), *map(str, overrides)]), resume, report_hooks)
    options = TrainingOptions(data, val, config, weights, epochs, batch_size, image_size, output, tuple(overrides))
    return train_planned(options, resume, report_hooks)


def train_planned(options: TrainingOptions, resume: bool = False, report_hooks: Hooks | None = None) -> Training:
    """Plan a training and run it; every process of a job must call this. See :func:`train`."""
    folder = options.output_dir()
    check_output_dir(folder)
    with locked_output_dir(folder), logging_to(folder):
        if not resume:
            refuse_overwriting(folder)
        show_platform()
        plan = Path(folder) / PLAN_NAME
        if resume and plan.is_file():
            console.info("Resuming with the plan in %s", plan)
        else:
            run_together(lambda: write_plan(options, plan) if comm.is_main_process() else None)
        overrides = [*map(str, options.overrides), "OUTPUT_DIR", folder]
        return train_config(load_config(str(plan), overrides), resume, report_hooks, plan=options)


def train_config(
    cfg: CfgNode, resume: bool = False, report_hooks: Hooks | None = None, *, plan: TrainingOptions | None = None
) -> Training:
    """Train the model of a config; every process of a job must call this.

    Args:
        cfg: the config; it is frozen.
        resume: continue from the last checkpoint of ``OUTPUT_DIR``, if there is one.
        report_hooks: see :func:`train`.
        plan: options of the plan, if data and plan have been shown.

    Raises:
        UserError: see :func:`train`.
        SystemExit: stopped by a signal; a checkpoint was saved.
    """
    if report_hooks is None:
        cfg.D2_MASKRCNN.INSPECT.ENABLED = False
    begin = time.monotonic()
    with prepared(cfg, train=True):
        if plan is None:
            show_platform()
        trainer = Trainer(cfg, report_hooks=report_hooks(cfg) if report_hooks else ())
        trainer.resume_or_load(resume=resume)
        if plan is None and comm.is_main_process():
            _show_run(trainer)
        if resume and plan is not None:
            warn_of_changed_options(plan, cfg, trainer.images_in_epoch)
        trainer.train()
        result = _result(trainer)
        console.info("Finished after %s. Everything is in %s:", duration(time.monotonic() - begin), cfg.OUTPUT_DIR)
        names = result.best.name, result.last.name
        console.info("  %s (best), %s (last), log.txt, metrics.json, TensorBoard files", *names)
        console.info("  predictions/ and inference/: validation images with predictions, figures and detections")
        return result


def _show_run(trainer: Trainer) -> None:
    cfg = trainer.cfg
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for line in describe_data({name: summarize(dataset_records(name)) for name in names}):
        console.info("%s", line)
    if trainer.start_iter >= trainer.max_iter:
        return  # finished, which the trainer reports
    origin = "the last checkpoint" if trainer.start_iter else cfg.MODEL.WEIGHTS or "random weights"
    per_epoch = trainer.images_in_epoch / cfg.SOLVER.IMS_PER_BATCH
    console.info(
        "Training from %s: iterations %d to %d of batches of %d, %.4g epochs; evaluation every %s iterations",
        origin, trainer.start_iter, trainer.max_iter - 1, cfg.SOLVER.IMS_PER_BATCH,
        trainer.max_iter / per_epoch, cfg.TEST.EVAL_PERIOD or trainer.max_iter,
    )  # fmt: skip


def _result(trainer: Trainer) -> Training:
    output = Path(trainer.cfg.OUTPUT_DIR)
    last, best = output / f"{FINAL_NAME}.pth", output / f"{BEST_NAME}.pth"
    best = best if best.is_file() else last
    comm.synchronize()
    metrics = stored_metrics(read_weights(best, copy_states=())) if best.is_file() else {}
    return Training(best, metrics, last, output)


def evaluate(
    weights: str | Path,
    data: str | Path | None = None,
    *,
    config: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[Any] = (),
) -> dict[str, float]:
    """Evaluate a model with COCO's metrics.

    Args:
        weights: weight file or address.
        data: annotation file, or folder of a dataset, of which the validation data is used, else the test data;
            default: the test sets of the config.
        config: config file or name; default: the config that ``weights`` stores.
        output: folder of ``log.txt`` and ``inference/`` with results, detections and figures; default: the folder
            ``evaluation`` beside the weights.
        overrides: ``KEY, VALUE, ...``.

    Returns:
        Metrics by name, such as ``segm/AP``, in percent; NaN where one is not defined.

    Raises:
        UserError: the weights or the data cannot be used, or have other classes.
    """
    cfg, checkpoint = open_checkpoint(str(weights), config, overrides)
    beside = Path("output") if is_remote(str(weights)) else Path(weights).parent
    cfg.OUTPUT_DIR = str(output or beside / "evaluation")
    if data is not None:
        _use_test_data(cfg, data, stored_class_names(checkpoint))
    elif cfg.D2_MASKRCNN.DATA.VAL_JSON:
        _use_own_data(cfg, weights)
    del checkpoint
    with prepared(cfg, train=False):
        show_platform()
        return {name: float(value) for name, value in flatten_results_dict(evaluate_config(cfg)).items()}


def _use_own_data(cfg: CfgNode, weights: str | Path) -> None:
    node = cfg.D2_MASKRCNN.DATA
    node.TRAIN_JSON, node.TRAIN_IMAGES = "", ""  # not needed, and maybe not on this machine
    try:
        find_path(node.VAL_JSON, "D2_MASKRCNN.DATA.VAL_JSON")
    except UserError as error:
        problem = f"its validation data {node.VAL_JSON} is not there; name the data to evaluate on"
        raise UserError(f"{weights}: {problem}.") from error


def _use_test_data(cfg: CfgNode, data: str | Path, names: list[str]) -> None:
    json_file, images = find_test_data(data, Path(cfg.OUTPUT_DIR) / "data")
    node = cfg.D2_MASKRCNN.DATA
    node.VAL_JSON, node.VAL_IMAGES, node.TRAIN_JSON, node.TRAIN_IMAGES = str(json_file), str(images), "", ""
    categories = sorted(read_coco_json(json_file)["categories"], key=lambda each: each["id"])
    in_data = [str(each["name"]) for each in categories]
    if names and in_data != names:
        raise UserError(
            f"{json_file} has the categories {', '.join(in_data)}, the model the classes {', '.join(names)}; expected "
            "the same names in the same order of ids."
        )


def _trained_model(cfg: CfgNode, resume: bool) -> nn.Module:
    if is_exported(cfg.MODEL.WEIGHTS) and not resume:
        return load_model(cfg)[0]
    model = Trainer.build_model(cfg)
    checkpointer = build_checkpointer(cfg, model)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError(
            "An evaluation needs weights: set MODEL.WEIGHTS to a weight file, or resume from the last checkpoint of "
            f"OUTPUT_DIR ({cfg.OUTPUT_DIR})."
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    checkpointer.check_evaluable()
    return model.eval()


class _TiledTrainer(Trainer):
    """Evaluate a :class:`TiledModel`, which reads the images itself."""

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_checked_test_loader(cfg, dataset_name, without_pixels)


def evaluate_config(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Evaluate ``MODEL.WEIGHTS`` or, with ``resume``, the last checkpoint of ``OUTPUT_DIR`` on ``DATASETS.TEST``.

    The numbers are also written to ``OUTPUT_DIR/inference/results.json``. Call it inside of
    :func:`~d2_maskrcnn.engine.setup.prepared`, in every process.

    Returns:
        What :meth:`Trainer.test` returns, under ``tta`` also with test-time augmentation if ``TEST.AUG.ENABLED``.

    Raises:
        UserError: there are no weights, or they do not fill the whole model.
    """
    model = _trained_model(cfg, resume)
    apply_precision(model, cfg.D2_MASKRCNN.INFERENCE.PRECISION)
    tiled = bool(cfg.D2_MASKRCNN.INFERENCE.TILE)
    tested = TiledModel(cfg, model) if tiled else model
    results = (_TiledTrainer if tiled else Trainer).test(cfg, tested)
    if cfg.TEST.AUG.ENABLED:
        results = {**results, "tta": Trainer.test_with_augmentation(cfg, model)}
    if comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR) / "inference" / "results.json"
        write_results(results, path)
        weights, names = cfg.MODEL.WEIGHTS or "the last checkpoint", ", ".join(cfg.DATASETS.TEST)
        show_results(results, f"Evaluation of {weights} on {names}")
        console.info("Results are in %s", path)
        with warn_on_failure("drawing predictions"):
            draw_test_sets(cfg, tested)
    return results
