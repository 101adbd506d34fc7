"""Evaluate a model on DATASETS.TEST with the COCO metrics.

examples:
  {program} --config-file quickstart.yaml MODEL.WEIGHTS output/quickstart/model_final.pth
  {program} --config-file quickstart.yaml --resume

--resume evaluates the last checkpoint of OUTPUT_DIR. KEY VALUE pairs after the options override the config.
"""

import argparse

from d2_maskrcnn.cli import train

IMPORTS = train.IMPORTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of an evaluation."""
    train.add_job_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the evaluation.

    Raises:
        UserError: bad input.
    """
    train.run(argparse.Namespace(**vars(args), eval_only=True))
