"""Evaluate a model with the COCO metrics.

examples:
  {program} output/balloon/model_best.pth
  {program} output/balloon/model_best.pth --data other_dataset --output evaluation
  {program} --config-file mrcnn_R101.yaml MODEL.WEIGHTS model_final.pth
  {program} --config-file mrcnn_R101.yaml --resume

A checkpoint of this project stores its config and the names of its test data. KEY VALUE pairs after the options
override the config. --resume evaluates the last checkpoint of OUTPUT_DIR.
"""

import argparse
from collections.abc import Sequence

from d2_maskrcnn.cli import train
from d2_maskrcnn.cli.predict import split_weights

IMPORTS = train.IMPORTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of an evaluation."""
    parser.add_argument("--weights", metavar="FILE", help="checkpoint or exported file, or an address of a checkpoint")
    parser.add_argument("--data", metavar="PATH", help="annotation file, or folder of a dataset, of which the "
        "validation data is used (default: the test data of the config)")  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", help="folder of the results (default: beside the weights)")
    train.add_job_arguments(parser)


def with_option_names(words: Sequence[str]) -> list[str]:
    """Insert ``--weights`` before a first word that is a weight file.

    >>> with_option_names(["model_best.pth", "--data", "balloon"])
    ['--weights', 'model_best.pth', '--data', 'balloon']
    """
    weights, rest = split_weights(words)
    return ["--weights", weights, *rest] if weights else rest


def run(args: argparse.Namespace) -> None:
    """Run the evaluation.

    Raises:
        UserError: bad input.
    """
    train.run(argparse.Namespace(**vars(args), eval_only=True))
