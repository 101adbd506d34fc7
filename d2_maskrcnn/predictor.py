"""Detect objects: ``Predictor("model_final.pth")("street.jpg").save("annotated.jpg")``."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from d2_maskrcnn.config.keys import plugin_node
from d2_maskrcnn.data.image_sources import check_several, list_images, load_image, load_images, source_name
from d2_maskrcnn.data.raw_images import to_rgb
from d2_maskrcnn.data.resizer import Resizer
from d2_maskrcnn.data.windowed_images import WindowedImage
from d2_maskrcnn.errors import UserError, check_number, one_line
from d2_maskrcnn.model_loading import apply_precision, category_ids, class_indices, load_model, open_checkpoint
from d2_maskrcnn.results import Results
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.tiling import detect_by_tiles, tiling_of
from detectron2.config import CfgNode
from detectron2.structures import Instances

logger = logging.getLogger(__name__)

TRACKING_SCORE = 0.5  # tracks are continued with detections down to this share of the threshold
DEFAULT_BATCH = 8  # most images per forward pass, where the caller does not choose
MAX_BATCH_PIXELS = 2**24  # of the network's inputs, padded: 15 images of 800x1333
CPU_BATCH_PIXELS = 2**18  # above that, a batch is not faster than its images one by one
WINDOW_BATCHES = 4  # batches' worth of images that are read before the model runs
WINDOW_PIXELS = 2**26  # of original images: 200 MB


class Predictor:
    """A model with its weights. Calls from several threads are safe; they run one after the other.

    Args:
        model: a checkpoint or an exported file, whose stored config is used, or a config with ``MODEL.WEIGHTS``.
        config: config file or name in place of the stored one.
        overrides: ``KEY, VALUE, ...`` pairs merged over the config.
        device: ``cpu``, ``cuda`` or ``cuda:N``; default: the GPU if there is one.
        precision: ``float32``, ``bfloat16``, ``float16`` (GPUs only) or ``auto``; default:
            ``D2_MASKRCNN.INFERENCE.PRECISION``. See :func:`~d2_maskrcnn.modeling.precision.set_precision`.
        threshold: minimum score of a detection; None keeps ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``.
        classes: list of names or numbers of the classes to keep; None for all.
        tile, overlap: predict images by square tiles of this side in pixels, of which neighbors share this part, and
            once more as a whole; see :mod:`d2_maskrcnn.tiling`. TIFF files of any size are decoded by windows then,
            other files of up to 357 megapixels are read. Default: ``TILE`` and ``OVERLAP`` of
            ``D2_MASKRCNN.INFERENCE``; 0 uses no tiles.
        content: what :func:`~d2_maskrcnn.model_loading.open_checkpoint` has read for a config given as ``model``.

    Attributes:
        cfg: the config in use.
        model: the model in evaluation mode.
        class_names: from the checkpoint, else from the config's test dataset; empty if neither has them.
        device: where the model is.
        dtype: of the model's convolutions.
        raw_channels: number of the images' channels if ``INPUT.FORMAT`` is ``RAW``; 0 for 8-bit color images.

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
        tile: int | None = None,
        overlap: float | None = None,
        content: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(model, CfgNode):
            cfg = model.clone()
        elif not isinstance(model, (str, Path)) or not str(model).strip():
            raise UserError(f"model {model!r:.100}: expected a checkpoint, an exported file, or a config.")
        else:
            cfg, content = open_checkpoint(str(model), config, overrides)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        cfg.defrost()
        for name, value in {"threshold": threshold, "tile": tile, "overlap": overlap}.items():
            check_number(name, value)
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise UserError(f"threshold {threshold}: expected a number from 0 to 1.")
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(threshold)
        node = plugin_node(cfg).INFERENCE
        self._tiling = tiling_of(node.TILE if tile is None else tile, node.OVERLAP if overlap is None else overlap)
        cfg.freeze()
        self.cfg = cfg
        self.model, self.class_names = load_model(cfg, device, content=content)
        self.dtype = apply_precision(self.model, precision or node.PRECISION)
        if not self.class_names:
            logger.warning("Neither MODEL.WEIGHTS nor DATASETS.TEST names all classes; they are shown as numbers.")
        self._prepare_calls(classes)

    @classmethod
    def of_model(cls, cfg: CfgNode, model: nn.Module) -> "Predictor":
        """Return a predictor that uses a model in evaluation mode, with the settings of its config."""
        predictor = cls.__new__(cls)
        predictor.cfg, predictor.model, predictor.class_names = cfg, model, []
        node = plugin_node(cfg).INFERENCE
        predictor._tiling = tiling_of(node.TILE, node.OVERLAP)
        predictor.dtype = getattr(model, "input_dtype", None) or torch.float32
        predictor._prepare_calls(None)
        return predictor

    def _prepare_calls(self, classes: Sequence[str | int] | None) -> None:
        count = self.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        stored: list[int] = getattr(self.model, "category_ids", [])
        self.category_ids = stored if len(stored) == count else category_ids(self.cfg, self.class_names, count)
        self.device: torch.device = self.model.device  # type: ignore[assignment]
        self._classes = class_indices(classes, self.class_names, count)
        self._for_tiles = self._tiling is not None
        self._resizer = Resizer(self.cfg)
        self.raw_channels = self._resizer.raw_channels
        self._inference: Callable[..., list[Instances]] = self.model.inference  # type: ignore[assignment]
        self._padding = max(getattr(getattr(self.model, "backbone", None), "size_divisibility", 0), 1)
        self._budget = CPU_BATCH_PIXELS if self.device.type == "cpu" else MAX_BATCH_PIXELS
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        names = ", ".join(self.class_names) or f"{self.cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes"
        return f"{type(self).__name__}({names:.200}; {self.device}, {str(self.dtype).removeprefix('torch.')})"

    def __call__(self, source: Any, *, bgr: bool = False, batch_size: int | None = None) -> Any:
        """Detect objects in one image or several.

        Args:
            source: one image: a path, an ``http(s)://`` URL, a ``PIL.Image``, an (H, W, 3) or (H, W) uint8 array, or a
                (3, H, W) uint8 tensor; or several: a list or iterator of these, a folder, or a glob pattern. If
                ``INPUT.FORMAT`` is ``RAW``, arrays and tensors have the model's channels and any type of numbers.
            bgr: whether arrays and tensors are BGR, as from OpenCV, instead of RGB.
            batch_size: most images per forward pass, where there are several. Only images of the same padded size
                share a pass, so the results are those of one image at a time. Default: as many as are faster together.

        Returns:
            ``Results`` for one image; an iterator over the ``Results``, in order, for several.

        Raises:
            UserError: an image cannot be read. Of several, files and URLs are reported and skipped instead.
        """
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise UserError(f"batch_size {batch_size!r}: expected an integer of at least 1.")
        if isinstance(source, (str, Path)) and (paths := list_images(source)) is not None:
            return self._iterate(paths, bgr, batch_size)
        if isinstance(source, (str, Path, Image.Image, np.ndarray, torch.Tensor)):
            image = (load_image(source, bgr, self._for_tiles, self.raw_channels), source_name(source))
            return next(self._detect([image], 1, MAX_BATCH_PIXELS))
        check_several(source)
        return self._iterate(source, bgr, batch_size)

    def _iterate(self, sources: Iterable[Any], bgr: bool, batch_size: int | None) -> Iterator[Results]:
        most = DEFAULT_BATCH if batch_size is None else batch_size
        budget = MAX_BATCH_PIXELS if batch_size else self._budget
        window: list[tuple[Any, str]] = []
        pixels = 0
        for image, name in load_images(sources, bgr, self._for_tiles, min(most, DEFAULT_BATCH), self.raw_channels):
            if isinstance(image, WindowedImage):
                yield from self._detect_file(image, name)
                continue
            window.append((image, name))
            pixels += image.shape[0] * image.shape[1]
            fits = min(most, budget // self._resizer.pixels(image.shape[:2]))  # images like this one in a batch
            # Several batches at a time, so that images of different sizes fill theirs.
            if self._tiling or fits <= 1 or len(window) >= WINDOW_BATCHES * fits or pixels >= WINDOW_PIXELS:
                yield from self._detect(window, most, budget)
                window, pixels = [], 0
        yield from self._detect(window, most, budget)

    def _detect_file(self, image: WindowedImage, name: str) -> Iterator[Results]:
        """Detect objects in a file that is decoded by windows; if it is corrupt somewhere, report and skip it."""
        try:
            yield from self._detect([(image, name)], 1, self._budget)
        except UserError as error:
            logger.error("%s", one_line(error))

    def _detect(self, images: Sequence[tuple[Any, str]], batch_size: int, max_pixels: int) -> Iterator[Results]:
        inputs = [self.prepare(image if self.raw_channels else _reversed(image)) for image, _ in images]
        sizes = [(image.shape[0], image.shape[1]) for image, _ in images]
        results = self.predict(inputs, sizes, batch_size, max_pixels)
        for (image, name), detections in zip(images, results, strict=True):
            shown = to_rgb(image) if self.raw_channels and isinstance(image, np.ndarray) else image
            yield Results(shown, detections, self.class_names, name, self.category_ids)

    def prepare(self, image: Any) -> Any:
        """Convert (H, W, 3) uint8 BGR to an input of :meth:`predict`; with tiles it stays as it is.

        If :attr:`raw_channels` is not 0, the image is (H, W, raw_channels) float32. With tiles it may also be a
        :class:`~d2_maskrcnn.data.windowed_images.WindowedImage`.
        """
        return image if self._tiling else self._resizer(image)

    def plan(self, inputs: Sequence[np.ndarray], batch_size: int = DEFAULT_BATCH) -> Iterator[list[int]]:
        """Divide prepared images into batches that are faster than their images one by one.

        Args:
            inputs: N images as returned by :meth:`prepare`.
            batch_size: most images of a batch.

        Yields:
            Indices into ``inputs``; the first batch contains the first image.
        """
        if self._tiling is not None:
            return iter([[index] for index in range(len(inputs))])
        shapes = [(each.shape[1], each.shape[2]) for each in inputs]
        return plan_batches(shapes, self._padding, batch_size, self._budget)

    def predict(
        self,
        inputs: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        batch_size: int | None = None,
        max_pixels: int = MAX_BATCH_PIXELS,
    ) -> list[Detections]:
        """Run the model on prepared images, in batches of images that are padded to the same size.

        Args:
            inputs: N images as returned by :meth:`prepare`.
            sizes: (H, W) of the N original images.
            batch_size, max_pixels: most images, and most padded pixels of several images, per forward pass.

        Returns:
            N detections in pixels of the original images.
        """
        if self._tiling is not None:
            return [detect_by_tiles(image, self._tiling, self._detect_tiles) for image in inputs]
        return self._predict_resized(inputs, sizes, batch_size or len(inputs), max_pixels)

    def _detect_tiles(self, tiles: Sequence[np.ndarray]) -> list[Detections]:
        sizes = [(tile.shape[0], tile.shape[1]) for tile in tiles]
        return self._predict_resized([self._resizer(tile) for tile in tiles], sizes, len(tiles), self._budget)

    def _predict_resized(
        self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], batch_size: int, max_pixels: int
    ) -> list[Detections]:
        shapes = [(each.shape[1], each.shape[2]) for each in inputs]
        found: dict[int, Detections] = {}
        for batch in plan_batches(shapes, self._padding, batch_size, max_pixels):
            outputs = self._forward([inputs[index] for index in batch])
            for index, output in zip(batch, outputs, strict=True):
                found[index] = Detections.from_instances(output, sizes[index])
        detections = [found[index] for index in range(len(inputs))]
        if self._classes is None:
            return detections
        return [each[np.isin(each.classes, self._classes)] for each in detections]

    @torch.inference_mode()
    def _forward(self, inputs: Sequence[np.ndarray]) -> list[Instances]:
        batch = [{"image": torch.from_numpy(image)} for image in inputs]
        with self._lock:
            return self._inference(batch, do_postprocess=False)


def _reversed(image: Any) -> Any:
    """Convert an array or windowed image from RGB to BGR."""
    return image[:, :, ::-1] if isinstance(image, np.ndarray) else image.reordered("BGR")


def plan_batches(shapes: Sequence[tuple[int, int]], step: int, batch_size: int, max_pixels: int) -> Iterator[list[int]]:
    """Divide images into batches whose images are padded to the same size.

    An image alone is padded in the same way, so batching changes its detections by rounding only.

    Args:
        shapes: (H, W) of the network's inputs.
        step: what the padded height and width are multiples of.
        batch_size, max_pixels: most images, and most padded pixels of several images, in a batch.

    Yields:
        Indices into ``shapes``.

    >>> list(plan_batches([(60, 90), (64, 64), (64, 96), (50, 96)], 32, 2, 10**6))
    [[0, 2], [3], [1]]
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(shapes):
        groups.setdefault((-(-height // step) * step, -(-width // step) * step), []).append(index)
    for (height, width), group in groups.items():
        most = max(1, min(batch_size, max_pixels // (height * width)))
        for start in range(0, len(group), most):
            yield group[start : start + most]
