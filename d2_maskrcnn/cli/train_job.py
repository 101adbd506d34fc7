"""Train or evaluate in all processes of a job: the work of ``d2-maskrcnn train`` and ``eval``."""

import argparse
import logging
from pathlib import Path
from typing import Any

from d2_maskrcnn.engine import Trainer, build_checkpointer, draw_test_sets, launch, setup, under_torchrun
from d2_maskrcnn.engine.launch import check_processes
from d2_maskrcnn.engine.output_dir import unlock_output_dir
from d2_maskrcnn.errors import UserError, warn_on_failure
from d2_maskrcnn.evaluation.evaluator import write_results
from d2_maskrcnn.inspection.training import inspection_hooks
from d2_maskrcnn.modeling.precision import set_precision
from detectron2.config import CfgNode
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Run :func:`main` in all processes of the job.

    Args:
        args: ``config_file``, ``resume``, ``eval_only``, ``opts``, ``num_gpus``, ``num_machines``, ``machine_rank`` and
            ``dist_url``, from :mod:`d2_maskrcnn.cli.train`.

    Raises:
        UserError: this machine cannot run so many processes.
    """
    dist_url = args.dist_url if args.num_machines > 1 else "auto"
    numbers = (args.num_gpus, args.num_machines, args.machine_rank, dist_url)
    if not under_torchrun():
        try:
            check_processes(*numbers)
        except UserError as error:
            flags = f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank {args.machine_rank}"
            raise UserError(f"{flags} --dist-url {args.dist_url}: {error}") from error
    launch(main, *numbers, args=(args,))


def main(args: argparse.Namespace) -> None:
    """Train or evaluate in one process of the job."""
    cfg = setup(args)
    try:
        (evaluate if args.eval_only else train)(cfg, resume=args.resume)
    finally:
        unlock_output_dir(cfg.OUTPUT_DIR)


def train(cfg: CfgNode, resume: bool) -> None:
    """Train the model of a config from its weights or, with ``resume``, from the last checkpoint of ``OUTPUT_DIR``.

    Raises:
        UserError: ``OUTPUT_DIR`` contains a training that would be overwritten without ``resume``.
    """
    trainer = Trainer(cfg, report_hooks=inspection_hooks(cfg))
    if trainer.checkpointer.has_checkpoint() and not resume:
        raise UserError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} already contains a training ({trainer.checkpointer.get_checkpoint_file()}): "
            "add --resume to continue it, or choose another OUTPUT_DIR."
        )
    trainer.resume_or_load(resume=resume)
    try:
        trainer.train()
    except SystemExit:
        logger.info("Start the same command with --resume to continue.")
        raise


def evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """Evaluate ``MODEL.WEIGHTS`` or, with ``resume``, the last checkpoint of ``OUTPUT_DIR`` on ``DATASETS.TEST``.

    The numbers are also written to ``OUTPUT_DIR/inference/results.json``.

    Returns:
        What :meth:`Trainer.test` returns, under ``tta`` also with test-time augmentation if ``TEST.AUG.ENABLED``.

    Raises:
        UserError: there are no weights, or they do not fill the whole model.
    """
    model = Trainer.build_model(cfg)
    checkpointer = build_checkpointer(cfg, model)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError(
            "--eval-only needs weights: add MODEL.WEIGHTS path/to/model.pth, or --resume for the last checkpoint of "
            f"OUTPUT_DIR ({cfg.OUTPUT_DIR})."
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    checkpointer.check_evaluable()
    set_precision(model.eval(), cfg.D2_MASKRCNN.INFERENCE.PRECISION)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results = {**results, "tta": Trainer.test_with_augmentation(cfg, model)}
    if comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR) / "inference" / "results.json"
        write_results(results, path)
        logger.info("Results are in %s", path)
        with warn_on_failure("drawing predictions"):
            draw_test_sets(cfg, model)
    return results
