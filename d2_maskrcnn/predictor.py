"""Detect objects: images in, :class:`~d2_maskrcnn.results.Results` out.

predictor = Predictor("model_final.pth")
results = predictor("street.jpg")
results.save("annotated.jpg")
"""

import glob
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image

from d2_maskrcnn.config.keys import plugin_node
from d2_maskrcnn.data.image_reading import is_image_name, pillow_to_array, read_image
from d2_maskrcnn.errors import UserError, did_you_mean
from d2_maskrcnn.model_loading import load_model, open_checkpoint
from d2_maskrcnn.modeling.precision import set_precision
from d2_maskrcnn.results import Results
from d2_maskrcnn.structures.detections import Detections
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances

logger = logging.getLogger(__name__)

TRACKING_SCORE = 0.5  # tracks are continued with detections down to this share of the threshold
URL_TIMEOUT = 30.0  # seconds
MAX_DOWNLOAD = 256 * 2**20  # bytes of an image


class Resizer:
    """Resize images for the model, as evaluation does.

    Args:
        cfg: ``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST`` and ``INPUT.FORMAT`` are used.
    """

    def __init__(self, cfg: CfgNode) -> None:
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        self._flip = cfg.INPUT.FORMAT == "RGB"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Convert (H, W, 3) uint8 BGR to (3, H', W') uint8 in the model's channel order."""
        resized = self._resize.get_transform(image).apply_image(image)
        return np.ascontiguousarray((resized[:, :, ::-1] if self._flip else resized).transpose(2, 0, 1))


class Predictor:
    """A model with its weights. Calls from several threads are safe; they run one after the other.

    Args:
        model: a checkpoint, whose stored config is used, or a config with ``MODEL.WEIGHTS``.
        config: config file or name in place of the stored one.
        overrides: ``KEY, VALUE, ...`` pairs merged over the config.
        device: ``cpu``, ``cuda`` or ``cuda:N``; default: the GPU if there is one.
        precision: ``float32``, ``bfloat16``, ``float16`` (GPUs only) or ``auto``; default:
            ``D2_MASKRCNN.INFERENCE.PRECISION``. See :func:`~d2_maskrcnn.modeling.precision.set_precision`.
        threshold: minimum score of a detection; None keeps ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``.
        classes: names or numbers of the classes to keep; None for all.

    Attributes:
        cfg: the config in use.
        model: the model in evaluation mode.
        class_names: from the checkpoint, else from the config's test dataset; empty if neither has them.
        device: where the model is.
        dtype: of the model's convolutions.

    Raises:
        UserError: the weights are missing or belong to another model, the device cannot be used, a class or precision
            is unknown, or the threshold is outside [0, 1].
    """

    def __init__(
        self,
        model: str | Path | CfgNode,
        *,
        config: str | Path | None = None,
        overrides: Sequence[Any] = (),
        device: str | None = None,
        precision: str | None = None,
        threshold: float | None = 0.5,
        classes: Sequence[str | int] | None = None,
    ) -> None:
        content = None
        if isinstance(model, CfgNode):
            cfg = model.clone()
        else:
            cfg, content = open_checkpoint(str(model), config, overrides)
        cfg.defrost()
        if not isinstance(model, CfgNode) and device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise UserError(f"threshold {threshold}: expected a number from 0 to 1.")
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(threshold)
        cfg.freeze()
        self.cfg = cfg
        self.model, self.class_names = load_model(cfg, device, content=content)
        self.dtype = set_precision(self.model, precision or plugin_node(cfg).INFERENCE.PRECISION)
        if not self.class_names:
            logger.warning(
                "Neither MODEL.WEIGHTS nor DATASETS.TEST names the model's classes; they are shown as numbers."
            )
        count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        self.category_ids = category_ids(cfg, self.class_names, count)
        self.device: torch.device = self.model.device  # type: ignore[assignment]
        self._classes = class_indices(classes, self.class_names, count)
        self._resizer = Resizer(cfg)
        self._inference: Callable[..., list[Instances]] = self.model.inference  # type: ignore[assignment]
        self._lock = threading.Lock()

    def __call__(self, source: Any, *, bgr: bool = False, batch_size: int = 1) -> Any:
        """Detect objects in one image or several.

        Args:
            source: one image: a path, an ``http(s)://`` URL, a ``PIL.Image``, an (H, W, 3) or (H, W) uint8 array, or a
                (3, H, W) uint8 tensor; or several: a list of these, a folder, or a glob pattern.
            bgr: whether arrays and tensors are BGR, as from OpenCV, instead of RGB.
            batch_size: images per forward pass, where there are several.

        Returns:
            ``Results`` for one image; an iterator over the ``Results`` for several.

        Raises:
            UserError: an image cannot be read. In a folder or glob it is reported and skipped.
        """
        if isinstance(source, (str, Path)) and (paths := _expand(str(source))) is not None:
            return self._iterate(_readable(paths), bgr, batch_size)
        if isinstance(source, (str, Path, Image.Image, np.ndarray, torch.Tensor)):
            return next(self._iterate([source], bgr, 1))
        if isinstance(source, Iterable):
            return self._iterate(source, bgr, batch_size)
        raise UserError(f"Expected an image, a path, a URL or a list of these, got {_describe(source)}.")

    def _iterate(self, sources: Iterable[Any], bgr: bool, batch_size: int) -> Iterator[Results]:
        batch: list[tuple[np.ndarray, str]] = []
        for source in sources:
            batch.append(source if isinstance(source, tuple) else (load_image(source, bgr), _name(source)))
            if len(batch) == batch_size:
                yield from self._detect(batch)
                batch = []
        if batch:
            yield from self._detect(batch)

    def _detect(self, batch: list[tuple[np.ndarray, str]]) -> Iterator[Results]:
        inputs = [self._resizer(image[:, :, ::-1]) for image, _ in batch]
        sizes = [(image.shape[0], image.shape[1]) for image, _ in batch]
        for (image, name), detections in zip(batch, self.predict(inputs, sizes), strict=True):
            yield Results(image, detections, self.class_names, name, self.category_ids)

    @torch.inference_mode()
    def predict(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Run the model on a batch of resized images.

        Args:
            inputs: N images as returned by :class:`Resizer`.
            sizes: (H, W) of the N original images.

        Returns:
            N detections in pixels of the original images.
        """
        batch = [{"image": torch.from_numpy(image)} for image in inputs]
        with self._lock:
            results = self._inference(batch, do_postprocess=False)
        detections = [Detections.from_instances(each, size) for each, size in zip(results, sizes, strict=True)]
        if self._classes is None:
            return detections
        return [each[np.isin(each.classes, self._classes)] for each in detections]


def load_image(source: Any, bgr: bool = False) -> np.ndarray:
    """Load one image as (H, W, 3) uint8 RGB. For the arguments see :meth:`Predictor.__call__`.

    Raises:
        UserError: ``source`` is no image, or it cannot be read.
    """
    if isinstance(source, (str, Path)):
        text = str(source)
        return read_image(download_image(text) if text.startswith(("http://", "https://")) else Path(text).expanduser())
    if isinstance(source, Image.Image):
        return pillow_to_array(source)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
        source = source.transpose(1, 2, 0) if source.ndim == 3 and source.shape[0] == 3 else source
    if not isinstance(source, np.ndarray):
        raise UserError(f"Expected an image, got {_describe(source)}.")
    if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
        raise UserError(f"Expected an (H, W, 3) or (H, W) uint8 image, got {_describe(source)}.")
    if 0 in source.shape:
        raise UserError(f"Expected an image with pixels, got {_describe(source)}.")
    if source.ndim == 2:
        return np.repeat(source[:, :, None], 3, axis=2)
    return np.ascontiguousarray(source[:, :, ::-1] if bgr else source)


def class_indices(classes: Sequence[str | int] | None, names: Sequence[str], count: int) -> np.ndarray | None:
    """Look up class numbers; None stands for all classes.

    Args:
        classes: names (case is ignored), or numbers counted from 0.
        names: the model's class names.
        count: number of classes of the model.

    Raises:
        UserError: there is no such class; the most similar one is suggested.
    """
    if not classes:
        return None
    lower = {name.lower(): index for index, name in enumerate(names)}
    chosen = []
    for item in map(str, classes):
        if item.lower() in lower:
            chosen.append(lower[item.lower()])
        elif item.isascii() and item.isdigit() and int(item) < count:
            chosen.append(int(item))
        else:
            hint = did_you_mean(item, names) or f" The classes are {', '.join(names) or f'0 to {count - 1}'}."
            raise UserError(f"The model has no class {item!r}.{hint}")
    return np.array(chosen)


def category_ids(cfg: CfgNode, names: Sequence[str], count: int) -> list[int]:
    """Return the COCO category id of each class: the test dataset's if it has these names, else 1, 2, 3, ..."""
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        ids = metadata.get("thing_dataset_id_to_contiguous_id")
        if ids and len(ids) == count and list(metadata.get("thing_classes", [])) == list(names):
            return sorted(ids, key=lambda key: ids[key])
    return list(range(1, count + 1))


def _expand(source: str) -> list[Path] | None:
    """Return the paths of a folder or glob pattern; None for a single image."""
    if source.startswith(("http://", "https://")):
        return None
    path = Path(source).expanduser()
    if path.is_dir():
        paths = sorted(each for each in path.iterdir() if is_image_name(each) and not each.name.startswith("."))
    elif not path.exists() and any(sign in source for sign in "*?["):
        paths = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if is_image_name(each))
    else:
        return None
    if not paths:
        raise UserError(f"{source}: contains no images.")
    return paths


def _readable(paths: Iterable[Path]) -> Iterator[tuple[np.ndarray, str]]:
    for path in paths:
        try:
            yield load_image(path), str(path)
        except UserError as error:
            logger.error("%s", error)


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else str(getattr(source, "filename", "") or "")


def download_image(url: str) -> bytes:
    """Download the file of an image.

    Raises:
        UserError: the download fails, or is larger than ``MAX_DOWNLOAD`` bytes.
    """
    try:
        with urlopen(url, timeout=URL_TIMEOUT) as answer:
            data: bytes = answer.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: download failed ({error}).") from error
    if len(data) > MAX_DOWNLOAD:
        raise UserError(f"{url}: more than {MAX_DOWNLOAD >> 20} MB; expected an image.")
    return data


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    return type(value).__name__
