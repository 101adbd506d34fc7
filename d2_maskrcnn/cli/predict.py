"""Detect objects in images, videos, cameras and streams, and draw them.

examples:
  {program} --example
  {program} model_final.pth photo.jpg --output out
  {program} --weights model_final.pth photos/ "more/*.png" https://example.org/a.jpg --output out --save-json out.json
  {program} --weights model_final.pth street.mp4 --output street_out.mp4
  {program} --weights model_final.pth camera --show

A checkpoint of this project stores its config; other weights need --config-file. Without an output option, annotated
files go to the folder predictions, and a camera to a window.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from d2_maskrcnn.errors import UserError

IMPORTS = ("d2_maskrcnn.cli.predict_job",)
PRECISIONS = ("float32", "bfloat16", "float16", "auto")
MAX_PROCESSES = 64
MAX_BATCH = 1024
WEIGHT_SUFFIXES = (".pth", ".pkl", ".safetensors", ".onnx", ".xml", ".pt2")
CAMERA = "camera"
ANNOTATION_FORMATS = ("coco", "labelme", "yolo", "cvat", "label-studio")
DEFAULT_OUTPUT = Path("predictions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the prediction."""
    parser.add_argument("input", nargs="*", metavar="INPUT", help="images, folders, quoted globs, image URLs; or one "
        "video, stream (rtsp://, http://), camera or camera:N")  # fmt: skip
    model = parser.add_argument_group("model")
    model.add_argument("--weights", default="", metavar="FILE", help="checkpoint or exported file, or an address of a "
        "checkpoint")  # fmt: skip
    model.add_argument("--example", action="store_true", help="use the package's small model of shapes and, without "
        "INPUT, two images")  # fmt: skip
    model.add_argument("--config-file", default="", metavar="FILE", help="config (default: the one in the checkpoint)")
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``predict`` and demo.py have in common."""
    _add_outputs(parser)
    _add_selection(parser)
    _add_speed(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; comes last"
    )


def run(args: argparse.Namespace) -> None:
    """Detect objects in the input.

    Raises:
        UserError: bad input; what was finished before is kept.
    """
    from d2_maskrcnn.cli import predict_job

    if not args.weights:
        args.weights, args.input = split_weights(args.input)
    if args.example:
        _use_example(args)
    if not (args.weights or args.config_file or "MODEL.WEIGHTS" in args.opts):
        raise UserError(f"predict needs a model: {how_to_name_model(args.input)}, or try --example.")
    args.input, args.video_input, args.webcam = sort_inputs(args.input)
    if args.show is None:
        args.show = args.webcam is not None and not (args.output or args.save_json or args.save_csv)
    if not (args.show or args.output or args.save_json or args.save_csv):
        args.output = DEFAULT_OUTPUT
    predict_job.run(args)


def _use_example(args: argparse.Namespace) -> None:
    from d2_maskrcnn import example

    if args.weights or args.config_file:
        raise UserError("--example has a model of its own; leave out --weights and --config-file.")
    args.weights = str(example.WEIGHTS)
    if not args.input:
        args.input = [str(path) for path in example.IMAGES]
        args.overwrite |= not args.output


def split_weights(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split the weights, if the first word names some, from the inputs that follow.

    >>> split_weights(["model_final.pth", "a.jpg"]), split_weights(["a.jpg"])
    (('model_final.pth', ['a.jpg']), ('', ['a.jpg']))
    """
    if words and words[0].lower().endswith(WEIGHT_SUFFIXES):
        return words[0], list(words[1:])
    return "", list(words)


def how_to_name_model(words: Sequence[str]) -> str:
    """Say how to name a model, if the words of the command begin with something else."""
    later = next((word for word in words if word.lower().endswith(WEIGHT_SUFFIXES)), None)
    return f"name {later} before the images" if later else "name a checkpoint with --weights FILE"


def sort_inputs(inputs: Sequence[str]) -> tuple[list[str] | None, str | None, int | None]:
    """Sort the inputs into images, a video or stream, and a camera.

    Returns:
        Images, video and camera number; two of them are None.

    Raises:
        UserError: there is no input, or a video or camera is not the only one.

    >>> sort_inputs(["a.jpg", "folder"]), sort_inputs(["a.MP4"]), sort_inputs(["camera:1"])
    ((['a.jpg', 'folder'], None, None), (None, 'a.MP4', None), (None, None, 1))
    """
    from d2_maskrcnn.video.sources.images import is_video

    if not inputs:
        raise UserError("predict needs an input: images, folders, a video, a stream or `camera`.")
    moving = [item for item in inputs if _is_camera(item) or is_video(item)]
    if not moving:
        return list(inputs), None, None
    if len(inputs) > 1:
        raise UserError(f"{moving[0]}: expected it to be the only input; give videos and cameras one at a time.")
    if _is_camera(moving[0]):
        return None, None, int(moving[0].partition(":")[2] or 0)
    return None, moving[0], None


def _is_camera(item: str) -> bool:
    name, _, number = item.partition(":")
    return name == CAMERA and (item == CAMERA or (number.isascii() and number.isdigit()))


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=Path, metavar="PATH", help="a file, or a folder")
    json_help = "images: COCO results; videos: one line per frame with times and track ids"
    group.add_argument("--save-json", type=Path, metavar="FILE", help=json_help)
    group.add_argument("--save-csv", type=Path, metavar="FILE", help="one row per detection")
    group.add_argument("--save-as", choices=ANNOTATION_FORMATS, help="images: write the detections into the folder "
        "--output as annotations, to correct in a tool; the images aren't drawn")  # fmt: skip
    group.add_argument("--rank", choices=("uncertain",), help="images: order them by how uncertain the model is, and "
        "list them in ranking.csv in the folder --output")  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    show_help = "open a window, or not (default: only if nothing is written); Esc or q closes it"
    group.add_argument("--show", action=argparse.BooleanOptionalAction, default=None, help=show_help)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("selection")
    share = _number(float, 0, 1)
    names = ("--confidence-threshold", "--threshold")
    group.add_argument(*names, type=share, default=0.5, metavar="P", help="minimum score (0.5)")
    group.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes: names or numbers")
    group.add_argument("--no-tracking", action="store_true", help="videos: don't track objects from frame to frame")
    group.add_argument("--start", metavar="T", help="videos: first frame: a number, or a time such as 12.5s or 1:02")
    group.add_argument("--end", metavar="T", help="videos: frame to stop before: a number or a time")
    group.add_argument(
        "--stride", type=_number(int, 1), default=1, metavar="N", help="videos: process every Nth frame only"
    )


def _add_speed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--batch-size", type=_number(int, 1, MAX_BATCH), default=1, metavar="N", help="images per forward pass (1)"
    )
    group.add_argument(
        "--tile", type=_number(int, 32), metavar="PIXELS", help="predict large images by square tiles of this side"
    )
    group.add_argument("--overlap", type=_number(float, 0, 0.9), metavar="F", help="overlap as a share of a tile (0.2)")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    group.add_argument("--precision", choices=PRECISIONS, help="of the computation (default: the config's)")
    parallel_help = "run N model processes (without N: one per GPU, two without a GPU)"
    group.add_argument(
        "--parallel", nargs="?", const=0, type=_number(int, 0, MAX_PROCESSES), metavar="N", help=parallel_help
    )
    timeout_help = "seconds without data until a stream counts as stalled (10)"
    group.add_argument("--timeout", type=_number(float, 0.001), default=10.0, metavar="S", help=timeout_help)


def _number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], float]:
    """Return a converter for :mod:`argparse` that checks the range [least, most]."""

    def convert(text: str) -> float:
        value: float = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text}: expected a number from {least} to {most}" if most != float("inf")
                else f"{text}: expected a number of at least {least}"
            )  # fmt: skip
        return value

    convert.__name__ = {int: "whole number", float: "number"}[kind]  # argparse names it in its messages
    return convert
