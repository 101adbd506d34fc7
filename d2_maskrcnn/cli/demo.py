"""The demo's command line: what is shown, with which model, and where the results go."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.predictor import PRECISIONS, TRACKING_SCORE, Predictor, Resizer, category_ids, class_indices
from d2_maskrcnn.video.clip import Excerpt, Position
from d2_maskrcnn.video.open import open_camera, open_video, open_writer
from d2_maskrcnn.video.run import Outputs, VideoLike, Work, run_images, run_video
from d2_maskrcnn.video.sinks.outputs import (
    CocoResults,
    CsvRows,
    ImageFiles,
    JsonLines,
    Window,
    check_display,
    check_target,
)
from d2_maskrcnn.video.sources.images import VIDEO_SUFFIXES, ImageSource, find_images, is_file_type
from d2_maskrcnn.video.workers import InProcess, WorkerPool, default_count
from detectron2.config import CfgNode

TITLE = "Mask R-CNN"
NO_H264 = (".webm",)


def build_parser() -> argparse.ArgumentParser:
    """The options, in Detectron2's habits."""
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Mask R-CNN on images, videos, webcams and streams.", allow_abbrev=False
    )
    parser.add_argument("--config-file", default="configs/mrcnn_R101.yaml", metavar="FILE", help="the model's config")
    shown = parser.add_argument_group("what is shown").add_mutually_exclusive_group(required=True)
    shown.add_argument("--input", nargs="+", metavar="PATH", help="images, folders of images, or quoted globs")
    shown.add_argument("--video-input", metavar="PATH_OR_URL", help="a video file, or an RTSP or HTTP stream")
    shown.add_argument("--webcam", nargs="?", const=0, type=int, metavar="N", help="camera number N (default: 0)")
    _add_results(parser)
    _add_choices(parser)
    _add_speed(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, such as MODEL.WEIGHTS"
    )
    return parser


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--output", type=Path, metavar="PATH", help="a file, or a folder")
    group.add_argument(
        "--save-json",
        type=Path,
        metavar="FILE",
        help="COCO results of images; one line a frame, with times and track ids, of videos",
    )
    group.add_argument("--save-csv", type=Path, metavar="FILE", help="one row a detection")
    group.add_argument("--overwrite", action="store_true", help="replace files that exist")
    group.add_argument(
        "--show",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="open a window (default: if no file is asked for); Esc or q closes it",
    )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("choices")
    group.add_argument("--confidence-threshold", type=float, default=0.5, metavar="P", help="least score, 0 to 1 (0.5)")
    group.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes: names or numbers")
    group.add_argument("--no-tracking", action="store_true", help="videos: every frame for itself")
    group.add_argument("--start", metavar="T", help="videos: first frame: a number, or a time such as 12.5s or 1:02")
    group.add_argument("--end", metavar="T", help="videos: the frame to stop before, given likewise")
    group.add_argument("--stride", type=int, default=1, metavar="N", help="videos: only every Nth frame")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speed")
    group.add_argument("--batch-size", type=int, default=1, metavar="N", help="images that the model gets together")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: the config's)")
    group.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="of the model (float32)")
    group.add_argument(
        "--parallel",
        nargs="?",
        const=0,
        type=int,
        metavar="N",
        help="N model processes side by side (default: one for each GPU, two without)",
    )
    group.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="seconds until a stream is stalled (10)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the demo.

    Raises:
        UserError: bad input; frames already done are kept.
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    cv2.setNumThreads(1)  # the stages already work side by side
    _check_numbers(args)
    if args.show is None:
        args.show = not (args.output or args.save_json or args.save_csv)
    if args.show:
        check_display()
    cfg = _config(args)
    if args.input is not None:
        _images(args, cfg)
    else:
        _video(args, cfg)


def _images(args: argparse.Namespace, cfg: CfgNode) -> None:
    paths = find_images(args.input)
    names = [str(path) for path in paths]
    files = ImageFiles(names, args.output, args.overwrite) if args.output else None
    _check_tables(args)
    work = _work(args, cfg)
    outputs = Outputs(
        image_files=files,
        json=CocoResults(args.save_json, names) if args.save_json else None,
        csv=CsvRows(args.save_csv) if args.save_csv else None,
        window=Window(TITLE, wait=True) if args.show else None,
    )
    run_images(ImageSource(paths), work, outputs)


def _video(args: argparse.Namespace, cfg: CfgNode) -> None:
    source = _open_source(args)
    target = _video_target(args) if args.output else None
    _check_tables(args)
    work = _work(args, cfg)
    work.tracking = not args.no_tracking
    outputs = Outputs(
        video=open_writer(target, source.info) if target else None,
        json=JsonLines(args.save_json) if args.save_json else None,
        csv=CsvRows(args.save_csv) if args.save_csv else None,
        window=Window(TITLE, wait=False) if args.show else None,
    )
    run_video(source, work, outputs)


def _open_source(args: argparse.Namespace) -> VideoLike:
    excerpt = Excerpt(_position(args.start, "--start"), _position(args.end, "--end"), args.stride)
    if excerpt.is_empty:
        raise UserError(f"--start {args.start} --end {args.end}: nothing is left; expected an end behind the start.")
    if args.webcam is not None:
        return open_camera(args.webcam, excerpt)
    return open_video(args.video_input, excerpt, args.timeout)


def _video_target(args: argparse.Namespace) -> Path:
    output: Path = args.output
    if output.suffix.lower() not in VIDEO_SUFFIXES or output.is_dir():
        if output.is_file() or (is_file_type(output) and not output.is_dir()):
            raise UserError(f"--output {output} is no video's name; expected one such as {output.with_suffix('.mp4')}.")
        stem = f"webcam{args.webcam}" if args.video_input is None else Path(args.video_input.split("?")[0]).stem
        output = output / f"{stem or 'stream'}.mp4"
    if output.suffix.lower() in NO_H264:
        raise UserError(f"--output {output}: {output.suffix} files take no H.264; use {output.with_suffix('.mp4')}.")
    if args.video_input and output.exists() and Path(args.video_input).exists() and output.samefile(args.video_input):
        raise UserError(f"--output {output} would replace the input: name another file or folder.")
    return check_target(output, args.overwrite, "--output")


def _work(args: argparse.Namespace, cfg: CfgNode) -> Work:
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    processes = 1 if args.parallel is None else args.parallel or default_count()
    model: InProcess | WorkerPool = (
        InProcess(Predictor(cfg, args.precision))
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
        side_by_side=processes,
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


def _check_numbers(args: argparse.Namespace) -> None:
    wrong: list[tuple[str, Any, str]] = [
        ("--confidence-threshold", args.confidence_threshold, "a number from 0 to 1")
        if not 0 <= args.confidence_threshold <= 1
        else ("", None, ""),
        ("--stride", args.stride, "a whole number from 1 on") if args.stride < 1 else ("", None, ""),
        ("--batch-size", args.batch_size, "a whole number from 1 on") if args.batch_size < 1 else ("", None, ""),
        ("--timeout", args.timeout, "a number of seconds above 0") if args.timeout <= 0 else ("", None, ""),
        ("--parallel", args.parallel, "a number from 1 on") if (args.parallel or 0) < 0 else ("", None, ""),
        ("--webcam", args.webcam, "a number from 0 on") if (args.webcam or 0) < 0 else ("", None, ""),
    ]
    for option, value, expected in wrong:
        if option:
            raise UserError(f"{option} {value}: expected {expected}.")


def _position(text: str | None, option: str) -> Position | None:
    if text is None:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise UserError(
            f"{option} {text}: expected a frame number such as 120, or a time such as 12.5s or 1:02."
        ) from error
