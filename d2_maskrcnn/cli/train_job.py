"""Train or evaluate in all processes of a job: the work of ``d2-maskrcnn train`` and ``eval``.

It is apart from :mod:`d2_maskrcnn.cli.train`, so that ``--help`` does not import PyTorch.
"""

import argparse
import contextlib

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.engine import launch, under_torchrun
from d2_maskrcnn.engine.launch import check_processes
from d2_maskrcnn.engine.plan_file import SCRATCH, TrainingOptions
from d2_maskrcnn.engine.run import Training, evaluate, evaluate_config, train_config, train_planned
from d2_maskrcnn.engine.setup import prepared
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.training import inspection_hooks
from d2_maskrcnn.weights.checkpoint_files import existing_training
from detectron2.utils import comm

PLANNED = ("val", "epochs", "batch_size", "image_size")  # options that need --data


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
    if args.eval_only:
        _evaluate(args)
        return
    try:
        _train(args)
    except SystemExit:
        with contextlib.suppress(OSError):  # the terminal has gone
            if comm.is_main_process():
                print("Start the same command with --resume to continue.", flush=True)
        raise


def _train(args: argparse.Namespace) -> None:
    if args.data:
        options = _options(args)
        _refuse_overwriting(options.output_dir(), args.resume)
        _show_next_steps(train_planned(options, args.resume, inspection_hooks))
        return
    given = [name for name in PLANNED if getattr(args, name) is not None]
    if given:
        flag = given[0].replace("_", "-")
        raise UserError(f"--{flag} needs --data; with --config-file, set the config's keys, such as SOLVER.MAX_ITER.")
    if not (args.config_file or args.opts):
        raise UserError("train needs data or a config: add --data FOLDER, or --config-file with a file or name.")
    keys = [] if args.weights is None else ["MODEL.WEIGHTS", "" if args.weights == SCRATCH else args.weights]
    keys += [] if args.output is None else ["OUTPUT_DIR", args.output]
    cfg = load_config(args.config_file, [*keys, *args.opts])
    _refuse_overwriting(cfg.OUTPUT_DIR, args.resume)
    _show_next_steps(train_config(cfg, args.resume, inspection_hooks))


def _show_next_steps(training: Training) -> None:
    if comm.is_main_process():
        commands = [f"d2-maskrcnn {name} {training.best} IMAGE" for name in ("predict", "inspect")]
        print("Next:", *commands, sep="\n  ", flush=True)


def _refuse_overwriting(folder: str, resume: bool) -> None:
    existing = existing_training(folder)
    if existing and not resume:
        raise UserError(
            f"OUTPUT_DIR {folder} already contains a training ({existing}): add --resume to continue it, or choose "
            "another folder with --output."
        )


def _evaluate(args: argparse.Namespace) -> None:
    if args.weights:
        evaluate(args.weights, args.data, config=args.config_file or None, output=args.output, overrides=args.opts)
        return
    if args.data or args.output:
        raise UserError("An evaluation with --data or --output needs a model: add --weights FILE.")
    cfg = load_config(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS and not args.resume:
        raise UserError(
            "An evaluation needs weights: add --weights FILE or MODEL.WEIGHTS FILE, or --resume for the last "
            f"checkpoint of OUTPUT_DIR ({cfg.OUTPUT_DIR})."
        )
    with prepared(cfg, train=False):
        evaluate_config(cfg, args.resume)


def _options(args: argparse.Namespace) -> TrainingOptions:
    return TrainingOptions(
        data=args.data,
        val=args.val,
        config=args.config_file or None,
        weights=args.weights,
        epochs=args.epochs,
        batch_size=args.batch_size,
        image_size=args.image_size,
        output=args.output,
        overrides=tuple(args.opts),
    )
