"""Command line of the demo: detect objects in images, videos, cameras and streams."""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.predictor import PRECISIONS, TRACKING_SCORE, Predictor, Resizer, category_ids, class_indices
from d2_maskrcnn.video.clip import Clip, Position
from d2_maskrcnn.video.run import Sinks, VideoLike, Work, run_images, run_video
from d2_maskrcnn.video.sinks.image_files import ImageFiles
from d2_maskrcnn.video.sinks.output_paths import check_target
from d2_maskrcnn.video.sinks.tables import CocoResults, CsvRows, JsonLines
from d2_maskrcnn.video.sinks.window import Window, check_display
from d2_maskrcnn.video.sources.images import VIDEO_SUFFIXES, ImageSource, find_images, has_media_suffix
from d2_maskrcnn.video.workers import InProcess, WorkerPool, default_count
from detectron2.config import CfgNode

TITLE = "Mask R-CNN"
MAX_PROCESSES = 64
MAX_BATCH = 1024


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the options follow those of Detectron2's demo."""
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Mask R-CNN on images, videos, cameras and streams.", allow_abbrev=False
    )
    parser.add_argument("--config-file", default="configs/mrcnn_R101.yaml", metavar="FILE", help="config of the model")
    inputs = parser.add_argument_group("input").add_mutually_exclusive_group(required=True)
    inputs.add_argument("--input", nargs="+", metavar="PATH", help="images, folders of images, or quoted globs")
    inputs.add_argument("--video-input", metavar="PATH_OR_URL", help="a video file, or an RTSP or HTTP stream")
    inputs.add_argument("--webcam", nargs="?", const=0, type=int, metavar="N", help="camera number N (default: 0)")
    _add_outputs(parser)
    _add_selection(parser)
    _add_speed(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, such as MODEL.WEIGHTS"
    )
    return parser


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=Path, metavar="PATH", help="a file, or a folder")
    json_help = "images: COCO results; videos: one line per frame with times and track ids"
    group.add_argument("--save-json", type=Path, metavar="FILE", help=json_help)
    group.add_argument("--save-csv", type=Path, metavar="FILE", help="one row per detection")
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    show_help = "open a window (default: if no output is given); Esc or q closes it"
    group.add_argument("--show", action=argparse.BooleanOptionalAction, default=None, help=show_help)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--confidence-threshold", type=_number(float, 0, 1), default=0.5, metavar="P", help="minimum score (0.5)"
    )
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
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: the config's)")
    group.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="of the model (float32)")
    parallel_help = "N model processes (default: one per GPU, two without a GPU)"
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo.

    Raises:
        UserError: bad input; what was finished before is kept.
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("d2_maskrcnn.video").setLevel(logging.INFO)  # the summary
    cv2.setNumThreads(1)  # the stages already run concurrently
    if (args.webcam or 0) < 0:
        raise UserError(f"--webcam {args.webcam}: expected a number of at least 0.")
    if args.show is None:
        args.show = not (args.output or args.save_json or args.save_csv)
    if args.show:
        check_display()
    cfg = _config(args)
    if args.input is not None:
        _process_images(args, cfg)
    else:
        _process_video(args, cfg)


def _process_images(args: argparse.Namespace, cfg: CfgNode) -> None:
    paths = find_images(args.input)
    names = [str(path) for path in paths]
    files = ImageFiles(names, args.output, args.overwrite, "--output") if args.output else None
    _check_tables(args)
    work = _work(args, cfg)
    sinks = Sinks(
        image_files=files,
        json=CocoResults(args.save_json) if args.save_json else None,
        csv=CsvRows(args.save_csv) if args.save_csv else None,
        window=Window(TITLE, wait=True) if args.show else None,
    )
    run_images(ImageSource(paths), work, sinks)


def _process_video(args: argparse.Namespace, cfg: CfgNode) -> None:
    from d2_maskrcnn.video.sinks.video_file import VideoWriter  # needs PyAV, an extra

    source = _open_source(args)
    target = _video_target(args) if args.output else None
    _check_tables(args)
    work = _work(args, cfg)
    work.tracking = not args.no_tracking
    sinks = Sinks(
        video=VideoWriter(target, source.info) if target else None,
        json=JsonLines(args.save_json) if args.save_json else None,
        csv=CsvRows(args.save_csv) if args.save_csv else None,
        window=Window(TITLE, wait=False) if args.show else None,
    )
    run_video(source, work, sinks)


def _open_source(args: argparse.Namespace) -> VideoLike:
    clip = Clip(_position(args.start, "--start"), _position(args.end, "--end"), args.stride)
    if clip.is_empty:
        raise UserError(f"--start {args.start} --end {args.end}: no frame is left; expected an end after the start.")
    if args.webcam is not None:
        from d2_maskrcnn.video.sources.camera import CameraSource

        return CameraSource(args.webcam, clip)
    from d2_maskrcnn.video.sources.video_file import VideoSource

    return VideoSource(args.video_input, clip, args.timeout)


def _video_target(args: argparse.Namespace) -> Path:
    output: Path = args.output
    if output.suffix.lower() not in VIDEO_SUFFIXES or output.is_dir():
        if output.is_file() or (has_media_suffix(output) and not output.is_dir()):
            raise UserError(f"--output {output} is no video name; expected one such as {output.with_suffix('.mp4')}.")
        stem = f"webcam{args.webcam}" if args.video_input is None else Path(args.video_input.split("?")[0]).stem
        output = output / f"{stem or 'stream'}.mp4"
    if output.suffix.lower() == ".webm":
        raise UserError(f"--output {output}: WebM doesn't support H.264; use {output.with_suffix('.mp4')}.")
    if args.video_input and output.exists() and Path(args.video_input).exists() and output.samefile(args.video_input):
        raise UserError(f"--output {output} would replace the input: choose another file or folder.")
    return check_target(output, args.overwrite, "--output")


def _work(args: argparse.Namespace, cfg: CfgNode) -> Work:
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    processes = 1 if args.parallel is None else args.parallel or default_count()
    model: InProcess | WorkerPool = (
        InProcess(Predictor(cfg, precision=args.precision, threshold=None))
        if args.parallel is None
        else WorkerPool(cfg, args.precision, processes)
    )
    names = model.class_names
    return Work(
        model=model,
        resizer=Resizer(cfg),
        class_names=names,
        category_ids=category_ids(cfg, names, count),
        threshold=args.confidence_threshold,
        classes=class_indices(args.classes, names, count),
        batch_size=args.batch_size,
        draw=bool(args.output or args.show),
        record=bool(args.save_json or args.save_csv),
        parallel=processes,
    )


def _config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    if args.device:
        cfg.MODEL.DEVICE = args.device
    tracks = args.input is None and not args.no_tracking
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold * (TRACKING_SCORE if tracks else 1)
    cfg.freeze()
    return cfg


def _check_tables(args: argparse.Namespace) -> None:
    for path, option in ((args.save_json, "--save-json"), (args.save_csv, "--save-csv")):
        if path is not None:
            check_target(path, args.overwrite, option)


def _position(text: str | None, option: str) -> Position | None:
    if text is None:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise UserError(
            f"{option} {text}: expected a frame number such as 120, or a time such as 12.5s or 1:02."
        ) from error
