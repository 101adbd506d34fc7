"""Map dataset records to model inputs, with errors that name the image even when a worker process raised them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from d2_maskrcnn.data.coco.images import IMAGE_ERRORS, image_size, size_mismatch
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

Record = dict[str, Any]  # a dataset dict in Detectron2's standard format, before or after mapping


class MaskRCNNMapper(DatasetMapper):
    """Detectron2's :class:`DatasetMapper` with errors that name the image, and masks for images without objects.

    Construct it as ``MaskRCNNMapper(cfg, is_train=True)``.
    """

    def __call__(self, dataset_dict: Record) -> Record:
        """Read and augment one image.

        Args:
            dataset_dict: a record in Detectron2's standard format; not modified.

        Returns:
            The record with ``image`` (C, H, W) uint8 and, in training, ``instances`` in the augmented image's frame.

        Raises:
            UserError: the image is missing, corrupt, truncated or not of the size that the record gives.
        """
        name = dataset_dict["file_name"]
        try:
            if self.is_train and all(each.get("iscrowd", 0) for each in dataset_dict.get("annotations", [])):
                return self._map_without_objects(dataset_dict)
            return super().__call__(dataset_dict)
        except FileNotFoundError as error:
            raise UserError(f"{name}: no such file; copy the image there or remove it from the JSON") from error
        except SizeMismatchError as error:
            expected = (dataset_dict["width"], dataset_dict["height"])
            raise UserError(
                f"{size_mismatch(name, image_size(name), expected)}; expected 'width' and 'height' of the upright "
                "image: restore the original image, or annotate this one"
            ) from error
        except IMAGE_ERRORS as error:
            raise UserError(
                f"{name}: not a readable image, corrupt or truncated ({type(error).__name__}: {error}); "
                "copy it again or remove it from the JSON"
            ) from error

    def _map_without_objects(self, record: Record) -> Record:
        """Map an image without objects: Detectron2's mapper omits ``gt_masks`` and fails if images are cropped."""
        sample = super().__call__({key: value for key, value in record.items() if key != "annotations"})
        height, width = sample["image"].shape[-2:]
        empty = Instances((height, width))
        empty.gt_boxes = Boxes(torch.empty(0, 4))
        empty.gt_classes = torch.empty(0, dtype=torch.int64)
        if self.use_instance_mask:
            polygons = self.instance_mask_format == "polygon"
            empty.gt_masks = PolygonMasks([]) if polygons else BitMasks(torch.empty(0, height, width, dtype=torch.bool))
        sample["instances"] = empty
        return sample


@dataclass(frozen=True)
class Failure:
    """Error message that a worker process returns instead of a sample.

    An exception that leaves a worker process is wrapped in a traceback of many lines.
    """

    message: str


class CatchUserErrors:
    """Mapper wrapper that returns a :class:`UserError` as a :class:`Failure`, which can leave a worker process."""

    def __init__(self, mapper: Callable[[Record], Record]) -> None:
        self.mapper = mapper

    def __call__(self, record: Record) -> Record | Failure:
        """Return the mapped record, or the failure."""
        try:
            return self.mapper(record)
        except UserError as error:
            return Failure(str(error))


def raise_failures(batch: list[Record | Failure]) -> list[Record]:
    """Return ``batch`` if it contains no failure.

    Raises:
        UserError: the first failure of the batch.
    """
    for sample in batch:
        if isinstance(sample, Failure):
            raise UserError(sample.message)
    return batch  # type: ignore[return-value]


class CheckedLoader:
    """Iterable over the batches of a loader whose mapper is wrapped in :class:`CatchUserErrors`; raises failures."""

    def __init__(self, loader: Iterable[list[Record | Failure]]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Record]]:
        return map(raise_failures, self.loader)


def build_checked_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[Record], Record] | None = None
) -> CheckedLoader:
    """Build Detectron2's test loader with one-line errors that name the image.

    Args:
        cfg: gives the test image size and the number of workers.
        dataset_name: a registered dataset.
        mapper: default: ``MaskRCNNMapper(cfg, is_train=False)``.
    """
    catching = CatchUserErrors(mapper or MaskRCNNMapper(cfg, is_train=False))
    return CheckedLoader(build_detection_test_loader(cfg, dataset_name, mapper=catching))
