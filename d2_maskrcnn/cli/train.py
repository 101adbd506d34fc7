"""Train a model, or continue a training.

examples:
  {program} --config-file quickstart.yaml
  {program} --config-file mrcnn_R101.yaml --num-gpus 8 SOLVER.IMS_PER_BATCH 16
  {program} --config-file mrcnn_R101.yaml --resume

KEY VALUE pairs after the options override the config. On a machine without a GPU, --num-gpus N starts N processes on
the CPU.
"""

import argparse

IMPORTS = ("d2_maskrcnn.cli.train_job",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training; they include those of Detectron2's ``default_argument_parser``."""
    parser.allow_abbrev = True  # as Detectron2's parser does
    add_job_arguments(parser)
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


def run(args: argparse.Namespace) -> None:
    """Run the training.

    Raises:
        UserError: bad input.
    """
    from d2_maskrcnn.cli import train_job

    train_job.run(args)
