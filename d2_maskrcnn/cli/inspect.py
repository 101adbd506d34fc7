"""Write a report of what happens inside a model step by step, of its weights, and of its training data.

examples:
  {program} model_final.pth image.png --output report
  {program} model_final.pth image.png --annotations instances_val.json --output report --parts result masks
  {program} --config-file quickstart.yaml --input image.png --output report --opts MODEL.WEIGHTS model_final.pth
  {program} --weights model_final.pth --output report

The report is OUTPUT/report.html, one file that opens without a network. A checkpoint of this project stores its config.
"""

import argparse
from pathlib import Path

from d2_maskrcnn.cli.predict import split_weights

IMPORTS = ("d2_maskrcnn.cli.inspect_job",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the inspection."""
    add = parser.add_argument
    add("words", nargs="*", default=[], metavar="MODEL IMAGE", help="a checkpoint, and images to run it on")
    add("--config-file", default="", metavar="FILE", help="config of the model (default: the one in the checkpoint)")
    add("--input", nargs="+", default=[], metavar="IMAGE", help="images to run the model on")
    add("--annotations", default="", metavar="JSON", help="COCO JSON of these images (default: the config's datasets)")
    add("--output", type=Path, default=Path("report"), metavar="FOLDER", help="folder of report.html (report)")
    add("--weights", default="", metavar="FILE", help="inspect this weight file alone, without a model")
    add("--compare", default="", metavar="FILE", help="another weight file to compare the weights with")
    add("--layers", nargs="+", metavar="NAME", help="modules whose activations are shown instead of those inside the "
        "heads, such as backbone.bottom_up.res4.22.conv3")  # fmt: skip
    add(
        "--parts",
        nargs="+",
        metavar="PART",
        help="only these parts: result, anchors, boxes, masks, activations, weights, data",
    )
    add("--score-threshold", type=float, default=0.5, metavar="S", help="minimum score of the final result (0.5)")
    add("--samples", type=int, default=6, metavar="N", help="number of augmented training images (6)")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, such as MODEL.WEIGHTS "
        "model.pth; comes last")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Write the report.

    Raises:
        UserError: bad input.
    """
    from d2_maskrcnn.cli import inspect_job

    model, images = split_weights(args.words)
    args.input = [*images, *args.input]
    args.opts = [*(["MODEL.WEIGHTS", model] if model else []), *args.opts]
    inspect_job.run(args)
