"""The model as the demo uses it: images in, small detections out."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from d2_maskrcnn.checkpoint import load_model
from d2_maskrcnn.errors import UserError, did_you_mean
from d2_maskrcnn.structures.detections import Detections
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRACKING_SCORE = 0.5  # with tracking, detections down to this part of the threshold help tracks over a few frames


class Resizer:
    """Brings images to the size that the model wants.

    Args:
        cfg: ``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST`` and ``INPUT.FORMAT`` count.
    """

    def __init__(self, cfg: CfgNode) -> None:
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        self._flip = cfg.INPUT.FORMAT == "RGB"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR to (3, H', W') uint8 in the model's channel order."""
        resized = self._resize.get_transform(image).apply_image(image)
        return np.ascontiguousarray((resized[:, :, ::-1] if self._flip else resized).transpose(2, 0, 1))


class Predictor:
    """A model with its weights, for batches of images.

    Args:
        cfg: describes the model; ``MODEL.WEIGHTS`` are loaded onto ``MODEL.DEVICE``.
        precision: ``float32``, ``bfloat16`` or ``float16``: of the convolutions and matrix products.

    Attributes:
        class_names: from the checkpoint or else from the config's test data set; empty if neither has them.

    Raises:
        UserError: there are no weights, they are of another model, or the device cannot be used.
    """

    def __init__(self, cfg: CfgNode, precision: str = "float32") -> None:
        self.model, self.class_names = load_model(cfg)
        if not self.class_names:
            logger.warning(
                "Neither MODEL.WEIGHTS nor DATASETS.TEST names the model's classes; they are shown as numbers."
            )
        self.device: torch.device = self.model.device  # type: ignore[assignment]
        self._inference: Callable[..., list[Instances]] = self.model.inference  # type: ignore[assignment]
        self._precision = PRECISIONS[precision]

    @torch.inference_mode()
    def predict(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detections in the frames of the original images.

        Args:
            inputs: N images as :class:`Resizer` gives them. sizes: (H, W) of the N originals.
        """
        batch = [{"image": torch.from_numpy(image)} for image in inputs]
        with self._autocast():
            results = self._inference(batch, do_postprocess=False)
        return [Detections.from_instances(found, size) for found, size in zip(results, sizes, strict=True)]

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._precision)


def class_indices(wanted: Sequence[str] | None, names: Sequence[str], count: int) -> np.ndarray | None:
    """The classes that ``--classes`` asks for, as numbers; None for all.

    Args:
        wanted: names, or numbers counted from 0. names: of the model's classes. count: how many it has.

    Raises:
        UserError: there is no such class; the nearest one is named.
    """
    if not wanted:
        return None
    lower = {name.lower(): index for index, name in enumerate(names)}
    chosen = []
    for item in wanted:
        if item.lower() in lower:
            chosen.append(lower[item.lower()])
        elif item.isdigit() and int(item) < count:
            chosen.append(int(item))
        else:
            hint = did_you_mean(item, names) or f" They are {', '.join(names) or f'0 to {count - 1}'}."
            raise UserError(f"--classes {item}: the model has no such class.{hint}")
    return np.array(chosen)


def category_ids(cfg: CfgNode, names: Sequence[str], count: int) -> list[int]:
    """The COCO category id of each class: the test data set's own where it has these names, else 1, 2, 3, ..."""
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        ids = metadata.get("thing_dataset_id_to_contiguous_id")
        if ids and len(ids) == count and list(metadata.get("thing_classes", [])) == list(names):
            return sorted(ids, key=lambda key: ids[key])
    return list(range(1, count + 1))
