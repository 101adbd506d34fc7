"""Detect objects in images, videos, cameras and streams: the work of ``d2-maskrcnn predict`` and of demo.py.

It is apart from :mod:`d2_maskrcnn.cli.predict`, so that ``--help`` does not import PyTorch.
"""

import argparse
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data.formats.predictions import MIN_SCORE
from d2_maskrcnn.data.raw_images import raw_channels
from d2_maskrcnn.data.resizer import Resizer
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.model_loading import class_indices, open_checkpoint
from d2_maskrcnn.predictor import TRACKING_SCORE, Predictor
from d2_maskrcnn.video.clip import Clip, Position
from d2_maskrcnn.video.run import VideoLike, Work, run_images, run_video
from d2_maskrcnn.video.sinks.annotated_images import ImageFiles
from d2_maskrcnn.video.sinks.annotation_files import AnnotationFiles
from d2_maskrcnn.video.sinks.group import Sinks
from d2_maskrcnn.video.sinks.output_paths import Inputs, check_target, identify
from d2_maskrcnn.video.sinks.tables import CocoResults, CsvRows, JsonLines, images_file
from d2_maskrcnn.video.sinks.window import Window, check_display
from d2_maskrcnn.video.sources.images import VIDEO_SUFFIXES, ImageSource, find_images, has_media_suffix
from d2_maskrcnn.video.workers import InProcess, WorkerPool, default_count
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

Content = dict[str, Any] | None  # of a weight file, see :func:`~d2_maskrcnn.model_loading.open_checkpoint`

TITLE = "Mask R-CNN"
DEFAULT_CONFIG = "mrcnn_R101"


def run(args: argparse.Namespace) -> None:
    """Detect objects and show or write them.

    Args:
        args: one of ``input`` (list of images), ``video_input`` (file or stream) and ``webcam`` (number), the others
            None; ``config_file``, ``weights`` and ``opts`` for the model; the options of
            :func:`d2_maskrcnn.cli.predict.add_common_arguments`.

    Raises:
        UserError: bad input; what was finished before is kept.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for name in (__name__, "d2_maskrcnn.video"):  # the summary
        logging.getLogger(name).setLevel(logging.INFO)
    cv2.setNumThreads(1)  # decoding, inference and encoding already run concurrently
    if (args.webcam or 0) < 0:
        raise UserError(f"--webcam {args.webcam}: expected a number of at least 0.")
    if args.show is None:
        args.show = not (args.output or args.save_json or args.save_csv)
    if args.show:
        check_display()
    cfg, content = _config(args)
    if args.input is not None:
        _process_images(args, cfg, content)
    else:
        _process_video(args, cfg, content)
    if written := [str(path) for path in (args.output, args.save_json, args.save_csv) if path is not None]:
        logger.info("Written: %s", ", ".join(written))


def _process_images(args: argparse.Namespace, cfg: CfgNode, content: Content) -> None:
    paths = find_images(args.input)
    names = [str(path) for path in paths]
    annotate = bool(args.save_as or args.rank)
    if annotate and args.output is None:
        raise UserError("--save-as and --rank write into a folder: name it with --output.")
    draw_files = args.output and not annotate
    inputs = [*names, *_model_files(cfg, args)]
    files = ImageFiles(names, args.output, args.overwrite, "--output", inputs) if draw_files else None
    _check_tables(args, identify(inputs), files.paths if files else ())
    if args.save_json:
        check_target(images_file(args.save_json), args.overwrite, "--save-json", identify(inputs))
    work = _work(args, cfg, content)
    classes = (work.class_names, work.category_ids)
    sinks = Sinks(
        image_files=files,
        annotations=AnnotationFiles(names, args.output, args.save_as, *classes, bool(args.rank), args.overwrite)
        if annotate
        else None,
        json=CocoResults(args.save_json) if args.save_json else None,
        csv=CsvRows(args.save_csv) if args.save_csv else None,
        window=Window(TITLE, wait=True) if args.show else None,
    )
    run_images(ImageSource(paths, bool(cfg.D2_MASKRCNN.INFERENCE.TILE), raw_channels(cfg)), work, sinks)


def _process_video(args: argparse.Namespace, cfg: CfgNode, content: Content) -> None:
    from d2_maskrcnn.video.sinks.video_file import VideoWriter  # needs PyAV, an extra

    if channels := raw_channels(cfg):
        raise UserError(
            f"Videos have 8-bit colors, this model takes images of {channels} channels (INPUT.FORMAT RAW): give images."
        )
    if args.save_as or args.rank:
        raise UserError("--save-as and --rank are for images: write the frames of the video as images first.")
    source = _open_source(args)
    inputs = identify([*_model_files(cfg, args), args.video_input or ""])
    target = _video_target(args, inputs) if args.output else None
    _check_tables(args, inputs, [target] if target else ())
    work = _work(args, cfg, content)
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
    from d2_maskrcnn.video.sources.video import VideoSource

    return VideoSource(args.video_input, clip, args.timeout)


def _video_target(args: argparse.Namespace, inputs: Inputs) -> Path:
    output: Path = args.output
    if output.suffix.lower() not in VIDEO_SUFFIXES or output.is_dir():
        if output.is_file() or (has_media_suffix(output) and not output.is_dir()):
            raise UserError(
                f"--output {output} is not a video file name; expected one such as {output.with_suffix('.mp4')}."
            )
        stem = f"webcam{args.webcam}" if args.video_input is None else Path(args.video_input.split("?")[0]).stem
        output = output / f"{stem or 'stream'}.mp4"
    if output.suffix.lower() == ".webm":
        raise UserError(f"--output {output}: WebM doesn't support H.264; use {output.with_suffix('.mp4')}.")
    return check_target(output, args.overwrite, "--output", inputs)


def _work(args: argparse.Namespace, cfg: CfgNode, content: Content) -> Work:
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    processes = 1 if args.parallel is None else args.parallel or default_count()
    options = {"precision": args.precision, "threshold": None}
    model: InProcess | WorkerPool = (
        InProcess(Predictor(cfg, content=content, **options))
        if args.parallel is None
        else WorkerPool(cfg, options, processes)
    )
    names = model.class_names
    return Work(
        model=model,
        resizer=_unchanged if cfg.D2_MASKRCNN.INFERENCE.TILE else Resizer(cfg),
        class_names=names,
        category_ids=model.category_ids,
        threshold=args.confidence_threshold,
        classes=class_indices(args.classes, names, count),
        batch_size=args.batch_size,
        draw=bool(args.show or (args.output and not (args.save_as or args.rank))),
        record=bool(args.save_json or args.save_csv or args.save_as or args.rank),
        parallel=processes,
    )


def _unchanged(image: np.ndarray) -> np.ndarray:
    """Return the image: the predictor resizes its tiles."""
    return image


def _config(args: argparse.Namespace) -> tuple[CfgNode, Content]:
    """Load the given config, else the one that the weights store, else ``DEFAULT_CONFIG``.

    Returns:
        The config, and the content of the weight file if it was read.
    """
    options = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    weights = args.weights or options.get("MODEL.WEIGHTS", "")
    if args.config_file or not weights:
        cfg, content = load_config(args.config_file or DEFAULT_CONFIG, args.opts), None
    else:
        cfg, content = open_checkpoint(weights, None, args.opts)
        cfg.MODEL.DEVICE = options.get("MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    if args.device:
        cfg.MODEL.DEVICE = args.device
    if args.tile is not None:
        cfg.D2_MASKRCNN.INFERENCE.TILE = args.tile
    if args.overlap is not None:
        cfg.D2_MASKRCNN.INFERENCE.OVERLAP = args.overlap
    tracks = args.input is None and not args.no_tracking
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold * (TRACKING_SCORE if tracks else 1)
    if args.rank:
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = min(args.confidence_threshold, MIN_SCORE)
    cfg.freeze()
    return cfg, content


def _model_files(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    return [str(name) for name in (cfg.MODEL.WEIGHTS, args.config_file) if name]


def _check_tables(args: argparse.Namespace, inputs: Inputs, images: Iterable[Path]) -> None:
    """Check the files of the tables; ``images`` are those that annotated images or videos are written to."""
    for path, option in ((args.save_json, "--save-json"), (args.save_csv, "--save-csv")):
        if path is not None:
            check_target(path, args.overwrite, option, inputs)
    outputs = [("--output", path) for path in (args.output, *images)]
    outputs += [("--save-json", args.save_json), ("--save-csv", args.save_csv)]
    if args.save_json and args.input is not None:
        outputs.append(("the list of images of --save-json", images_file(args.save_json)))
    names: dict[str, str] = {}
    for option, path in outputs:
        if path is not None and (other := names.setdefault(os.path.realpath(path), option)) != option:
            raise UserError(f"{other} and {option} are the same file {path}: expected two files.")


def _position(text: str | None, option: str) -> Position | None:
    if text is None:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise UserError(
            f"{option} {text}: expected a frame number such as 120, or a time such as 12.5s or 1:02."
        ) from error
