"""Export a model: choose the format, write the file, compare it with the model."""

import logging
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from d2_maskrcnn._version import __version__
from d2_maskrcnn.data.image_sources import list_images, load_image
from d2_maskrcnn.data.resizer import Resizer
from d2_maskrcnn.errors import UserError, did_you_mean
from d2_maskrcnn.exporters.agreement import Agreement, compare
from d2_maskrcnn.exporters.detector_graph import DetectorGraph
from d2_maskrcnn.exporters.onnx_format import write_onnx
from d2_maskrcnn.exporters.openvino_format import write_openvino
from d2_maskrcnn.exporters.quantization import quantize_onnx, quantize_openvino
from d2_maskrcnn.exporters.torch_format import write_torch
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.runtimes import ExportedModel
from d2_maskrcnn.runtimes.metadata import SUFFIXES, FileInfo, is_exported
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 100
COMPARED_IMAGES = 30
QUANTIZERS = {"onnx": quantize_onnx, "openvino": quantize_openvino}
WRITERS = {"onnx": write_onnx, "torch": write_torch, "openvino": write_openvino}
FORMATS = tuple(WRITERS)


def export(
    model: str | Path | CfgNode | Predictor,
    format: str = "onnx",
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    overrides: Sequence[Any] = (),
    half: bool = False,
    calibrate: str | Path | None = None,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    paste: bool = False,
    overwrite: bool = False,
) -> Path:
    """Export a trained model: the whole detector in one file that runs without this package.

    Args:
        model: a checkpoint, a config with ``MODEL.WEIGHTS``, or a predictor.
        format: ``onnx``, ``openvino`` (two files, ``.xml`` and ``.bin``), or ``torch`` (``.pt2``).
        output: the file to write; default: the checkpoint's name with the format's suffix.
        config, overrides: as for :class:`~d2_maskrcnn.Predictor`; ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` and the other
            settings of inference become part of the file.
        half: whether weights are float16.
        calibrate: a folder of images similar to the model's later input, for a file that computes in int8 (``onnx`` and
            ``openvino``). The first ``CALIBRATION_IMAGES`` are used; how well the file agrees with the model, and its
            speed, are logged at the end.
        size: (height, width) in pixels if the file is to take images of one size only, for runtimes that need it.
        batch: the number of images if the file is to take this number only.
        paste: whether the file also returns the masks pasted at the size of its input images.
        overwrite: whether an existing file is replaced.

    Returns:
        the file.

    Raises:
        UserError: the model cannot be loaded or exported, a package is missing, or an argument is wrong.
    """
    if format not in WRITERS:
        raise UserError(f"format {format!r}: expected {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}")
    if (batch is not None and batch < 1) or (size is not None and min(size) < 1):
        raise UserError(f"batch {batch}, size {size}: expected numbers of at least 1.")
    predictor = _load(model, config, overrides)
    path = _output(output, predictor.cfg.MODEL.WEIGHTS, format, overwrite)
    info = replace(describe(predictor, paste), batch=batch, size=size, precision="float16" if half else "float32")
    if calibrate is not None:
        if half or format not in QUANTIZERS:
            raise UserError(f"int8 is for the formats {' and '.join(QUANTIZERS)}, without half: got {format}.")
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(temporary) / "float32.onnx"
            write_onnx(predictor.model, source, info, paste=paste)
            logger.info("%s: %s", path, quantize(source, format, path, calibrate))
        return path
    dtype = torch.float16 if half else torch.float32
    WRITERS[format](predictor.model, path, info, dtype=dtype, paste=paste)
    return path


def quantize(source: Path, format: str, path: Path, folder: str | Path) -> Agreement:
    """Convert a float32 ONNX file of this plugin to int8, and compare both.

    Args:
        format: ``onnx`` or ``openvino``. path: the file to write. folder: images to measure ranges of activations on.

    Raises:
        UserError: the folder contains no images, one cannot be read, or a package is missing.
    """
    paths = list_images(str(folder))
    if paths is None:
        raise UserError(f"calibrate {folder}: expected a folder of images.")
    reference = Predictor(source, threshold=None)
    raw = reference.raw_channels
    images = [load_image(each, raw_channels=raw) for each in paths[:CALIBRATION_IMAGES]]
    model, resizer = reference.model, Resizer(reference.cfg)
    assert isinstance(model, ExportedModel)
    inputs = [model.inputs([resizer(image if raw else image[:, :, ::-1])]) for image in images]
    QUANTIZERS[format](source, path, inputs, replace(model.info, precision="int8"))
    return compare(Predictor(path, threshold=None), reference, images[:COMPARED_IMAGES])


def _load(model: Any, config: str | Path | None, overrides: Sequence[Any]) -> Predictor:
    if not isinstance(model, Predictor):
        model = Predictor(model, config=config, overrides=overrides, device="cpu", precision="float32", threshold=None)
    if is_exported(model.cfg.MODEL.WEIGHTS):
        raise UserError(f"{model.cfg.MODEL.WEIGHTS}: already exported; give the checkpoint it was made from.")
    return model


def _output(output: str | Path | None, weights: str, format: str, overwrite: bool) -> Path:
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == format)
    path = Path(output) if output is not None else Path(Path(weights).name).with_suffix(suffix)
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: expected a name that ends with {suffix} for the format {format}.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first.")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; name another file, or set overwrite.")
    return path


def describe(predictor: Predictor, paste: bool = False) -> FileInfo:
    """Return the metadata of a file exported from a predictor's model."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.D2_MASKRCNN.INFERENCE.PRECISION = "float32"  # the file decides
    packages = {name: metadata.version(name) for name in ("torch", "torchvision")}
    return FileInfo(
        config=cfg.dump(),
        class_names=predictor.class_names,
        channels=cfg.INPUT.FORMAT,
        shortest_edge=cfg.INPUT.MIN_SIZE_TEST,
        longest_edge=cfg.INPUT.MAX_SIZE_TEST,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        outputs=DetectorGraph(predictor.model, paste=paste).output_names,
        versions={"d2_maskrcnn": __version__, "python": platform.python_version(), **packages},
    )
