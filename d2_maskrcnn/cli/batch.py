"""Predict many images with Ray, on one machine or a cluster; a job that was interrupted continues.

examples:
  {program} model_best.pth images/ --output predictions
  {program} model.onnx "archive/**/*.jpg" --output predictions --workers 4 --cpus 2

The images are divided into shards, each of which becomes one JSON Lines file, with one line per image. The same command
again predicts the shards that are missing. An image that cannot be read is counted, and its line says why.
"""

import argparse
from pathlib import Path

from d2_maskrcnn.integrations import SHARD_SIZE

IMPORTS = ("d2_maskrcnn.integrations.ray",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the images and the options of the job."""
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="checkpoint or exported file")
    add("images", metavar="IMAGES", nargs="+", help="folders, glob patterns or image files")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder of the JSON Lines files")
    add("--confidence-threshold", type=float, default=0.5, metavar="SCORE", help="minimum score (default: 0.5)")
    add("--shard-size", type=int, default=SHARD_SIZE, metavar="N", help=f"images per file (default: {SHARD_SIZE})")
    add("--workers", type=int, metavar="N", help="processes with a model each (default: one per GPU, or per --cpus)")
    add("--cpus", type=float, default=1, metavar="N", help="CPU cores of a worker (default: 1)")


def run(args: argparse.Namespace) -> None:
    """Predict the images.

    Raises:
        UserError: bad input.
    """
    from d2_maskrcnn.integrations.ray import predict_images

    summary = predict_images(
        args.model,
        args.images,
        args.output,
        threshold=args.confidence_threshold,
        shard_size=args.shard_size,
        workers=args.workers,
        cpus=args.cpus,
    )
    print(f"{args.output}: {summary}")
