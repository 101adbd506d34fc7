"""Train a model on your own images, or as a config says, or continue a training.

examples:
  {program} --data FOLDER
  {program} --data FOLDER --epochs 30 --batch-size 4 --weights model_final.pth SOLVER.BASE_LR 0.001
  {program} --config-file quickstart.yaml
  {program} --config-file mrcnn_R101.yaml --num-gpus 8 SOLVER.IMS_PER_BATCH 16
  {program} --config-file mrcnn_R101.yaml --resume

--data takes a dataset in COCO's format or another that `d2-maskrcnn convert` reads, plans the training, and writes the
plan to OUTPUT/plan.yaml, a config that can be edited and given as --config-file. KEY VALUE pairs after the options
override the config and the plan. On a machine without a GPU, --num-gpus N starts N processes on the CPU.
"""

import argparse
import os

from d2_maskrcnn.errors import UserError

IMPORTS = ("d2_maskrcnn.cli.train_job",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training; they include those of Detectron2's ``default_argument_parser``."""
    parser.allow_abbrev = True  # as Detectron2's parser does
    add_job_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS or the last checkpoint")


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and evaluation have in common."""
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="config in YAML: a path, or the name of one in the package")
    add("--resume", action="store_true", help="use the last checkpoint in OUTPUT_DIR, if there is one")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs per machine (1)")
    add("--num-machines", type=int, default=1, metavar="N", help="machines in this job (1)")
    add("--machine-rank", type=int, default=0, metavar="I", help="index of this machine, from 0")
    add("--dist-url", default="auto", metavar="URL", help="several machines: tcp://HOST:PORT of the first one")
    add("opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys that override the file's")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training that is planned from its data."""
    add = parser.add_argument_group("with your own data").add_argument
    add("--data", metavar="PATH", help="folder of a dataset, or the annotation file of its training data")
    add("--val", metavar="JSON", help="validation data (default: found near --data, or a fifth of it)")
    add("--weights", metavar="FILE", help="weights to start from, or 'scratch' (default: trained on COCO)")
    add("--epochs", type=float, metavar="N", help="passes over the training images (default: by their number)")
    add("--batch-size", type=int, metavar="N", help="images per iteration (default: planned)")
    add("--image-size", type=int, metavar="N", help="shorter side of resized images in pixels (default: the config's)")
    add("--output", metavar="FOLDER", help="OUTPUT_DIR (default: output/<name of the data>)")


def run(args: argparse.Namespace) -> None:
    """Run the training.

    Raises:
        UserError: bad input.
    """
    if not (args.data or args.config_file) and args.opts and os.path.exists(args.opts[0]):
        option = "--config-file" if args.opts[0].endswith((".yaml", ".yml")) else "--data"
        raise UserError(f"{args.opts[0]}: name it with {option} {args.opts[0]}, before KEY VALUE pairs.")
    from d2_maskrcnn.cli import train_job

    train_job.run(args)
