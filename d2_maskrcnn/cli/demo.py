"""Run a Mask R-CNN on images, videos, webcams or streams, and draw its detections.

examples:
  {program} --config-file configs/mrcnn_R101.yaml --input photos/ --output annotated/ --opts MODEL.WEIGHTS model.pth
  {program} --config-file configs/mrcnn_R101.yaml --video-input in.mp4 --output out.mp4 --opts MODEL.WEIGHTS model.pth
  {program} --config-file configs/mrcnn_R101.yaml --webcam --show --output webcam.mp4 --opts MODEL.WEIGHTS model.pth
"""

import argparse

from d2_maskrcnn.cli.predict import IMPORTS, add_common_arguments

__all__ = ["IMPORTS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of Detectron2's demo, and those of ``d2-maskrcnn predict``."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the model")
    inputs = parser.add_argument_group("input").add_mutually_exclusive_group(required=True)
    inputs.add_argument("--input", nargs="+", metavar="PATH", help="images, folders of images, or quoted globs")
    inputs.add_argument("--video-input", metavar="PATH_OR_URL", help="a video file, or an RTSP or HTTP stream")
    inputs.add_argument("--webcam", nargs="?", const=0, type=int, metavar="N", help="camera number N (default: 0)")
    parser.set_defaults(weights="")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Detect objects in the input.

    Raises:
        UserError: bad input; what was finished before is kept.
    """
    from d2_maskrcnn.cli import predict_job

    predict_job.run(args)
