"""Evaluate a model with the COCO metrics.

examples:
  {program} --weights output/balloon/model_best.pth
  {program} --weights output/balloon/model_best.pth --data other_dataset --output evaluation
  {program} --config-file mrcnn_R101.yaml MODEL.WEIGHTS model_final.pth
  {program} --config-file mrcnn_R101.yaml --resume

A checkpoint of this project stores its config and the names of its test data. KEY VALUE pairs after the options
override the config. --resume evaluates the last checkpoint of OUTPUT_DIR.
"""

import argparse

from d2_maskrcnn.cli import train
from d2_maskrcnn.cli.predict import WEIGHT_SUFFIXES
from d2_maskrcnn.errors import UserError

IMPORTS = train.IMPORTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of an evaluation."""
    parser.add_argument("--weights", metavar="FILE", help="checkpoint or exported file, or an address of a checkpoint")
    parser.add_argument("--data", metavar="PATH", help="annotation file, or folder of a dataset, of which the "
        "validation data is used (default: the test data of the config)")  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", help="folder of the results (default: beside the weights)")
    train.add_job_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the evaluation.

    Raises:
        UserError: bad input.
    """
    if not args.weights and args.opts and args.opts[0].lower().endswith(WEIGHT_SUFFIXES):
        raise UserError(f"{args.opts[0]}: name the model with --weights {args.opts[0]}, before KEY VALUE pairs.")
    train.run(argparse.Namespace(**vars(args), eval_only=True))
