"""Map dataset records to model inputs, with errors that name the image even when a worker process raised them."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from d2_maskrcnn.data.image_reading import read_image, size_mismatch
from d2_maskrcnn.data.raw_images import ImageInput, check_augmentations, raw_channels, read_raw
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import check_polygon
from detectron2.config import CfgNode, configurable
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.file_io import PathManager

Record = dict[str, Any]  # a dataset dict in Detectron2's standard format, before or after mapping


class MaskRCNNMapper(DatasetMapper):
    """Map a record to a model input, as Detectron2's :class:`DatasetMapper` with this plugin's image reader.

    Construct it as ``MaskRCNNMapper(cfg, is_train=True)``. Differences: images are decoded by
    :func:`~d2_maskrcnn.data.image_reading.read_image`, errors name the image, and images without objects have empty
    ``gt_masks``. Boxes, classes and masks are mapped; keypoints, proposals and semantic labels are not.

    Args:
        raw_channels: number of channels of images that are read by
            :func:`~d2_maskrcnn.data.raw_images.read_raw`; 0 for 8-bit color images.

    Raises:
        UserError: an augmentation does not fit the images' channels.
    """

    @configurable
    def __init__(self, is_train: bool, *, raw_channels: int = 0, **options: Any) -> None:
        super().__init__(is_train, **options)
        self.raw_channels = raw_channels
        if raw_channels:
            check_augmentations(self.augmentations.augs)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments; see :class:`DatasetMapper`."""
        return {**super().from_config(cfg, is_train), "raw_channels": raw_channels(cfg)}

    def __call__(self, dataset_dict: Record) -> Record:
        """Read and augment one image.

        Args:
            dataset_dict: a record in Detectron2's standard format; not modified.

        Returns:
            The record without ``annotations``, with ``image`` (C, H, W) in ``INPUT.FORMAT`` (uint8; float32 for
            ``RAW``) and, in training,
            ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_masks``) in the augmented image's frame, without crowds.

        Raises:
            UserError: the image is missing, corrupt, truncated or not of the size that the record gives.
        """
        record = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        annotations = dataset_dict.get("annotations")
        augmented = ImageInput(self._read(record))
        transforms = self.augmentations(augmented)
        record["image"] = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())  # (C, H, W)
        if self.is_train and annotations is not None:
            objects = [self._used(each, record) for each in annotations if not each.get("iscrowd", 0)]
            record["instances"] = self._to_instances(objects, transforms, augmented.image.shape[:2])
        return record

    def _read(self, record: Record) -> np.ndarray:
        """Read the image of ``record`` in ``INPUT.FORMAT`` and add its size to the record if it is missing."""
        name = str(record["file_name"])
        path = PathManager.get_local_path(name)
        if self.raw_channels:
            image = read_raw(path, self.raw_channels)
        elif self.image_format in ("RGB", "BGR"):
            image = read_image(path, self.image_format)
        else:
            image = utils.convert_PIL_to_numpy(Image.fromarray(read_image(path)), self.image_format)
        height, width = image.shape[:2]
        record.setdefault("width", width)
        record.setdefault("height", height)
        expected = (record["width"], record["height"])
        if expected != (width, height):
            raise UserError(
                f"{size_mismatch(name, (width, height), expected)}; expected 'width' and 'height' of the upright "
                "image: restore the original image, or annotate this one"
            )
        return image

    def _to_instances(self, annotations: list[Record], transforms: T.Transform, size: tuple[int, int]) -> Instances:
        """Transform annotations to the augmented image of ``size`` (H, W)."""
        if not annotations:
            return self._no_instances(size)
        objects = [utils.transform_instance_annotations(each, transforms, size) for each in annotations]
        instances = utils.annotations_to_instances(objects, size, mask_format=self.instance_mask_format)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)  # type: ignore[return-value]  # without return_mask

    def _used(self, annotation: Record, record: Record) -> Record:
        """Copy the keys to map, since transforms work in place and would truncate integer coordinates."""
        keys = ("bbox", "bbox_mode", "category_id") + (("segmentation",) if self.use_instance_mask else ())
        missing = [key for key in keys if key not in annotation]
        if missing:
            raise UserError(f"{record['file_name']}: an annotation of this image has no {', '.join(missing)}")
        used = {key: annotation[key] for key in keys}
        if isinstance(used.get("segmentation"), list):
            try:
                polygons = [np.array(polygon, dtype=np.float64).reshape(-1) for polygon in used["segmentation"]]
                for polygon in polygons:
                    check_polygon(polygon, record["height"], record["width"])
            except (TypeError, ValueError) as error:
                raise UserError(f"{record['file_name']}: {error}") from error
            used["segmentation"] = polygons
        return used

    def _no_instances(self, size: tuple[int, int]) -> Instances:
        empty = Instances(size)
        empty.gt_boxes = Boxes(torch.empty(0, 4))
        empty.gt_classes = torch.empty(0, dtype=torch.int64)
        if self.use_instance_mask:
            polygons = self.instance_mask_format == "polygon"
            empty.gt_masks = PolygonMasks([]) if polygons else BitMasks(torch.empty(0, *size, dtype=torch.bool))
        return empty


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
    records = dataset_records(dataset_name)
    return CheckedLoader(build_detection_test_loader(records, mapper=catching, num_workers=cfg.DATALOADER.NUM_WORKERS))


def dataset_records(name: str) -> Sequence[Record]:
    """Return the records of a registered dataset, which is loaded only once as long as it does not change.

    An evaluation needs them several times, and parsing a large JSON takes a minute. They are kept serialized, which
    takes a fraction of the memory; each access makes a new dict.

    Raises:
        KeyError: the dataset is not registered.
        UserError: it is empty.
    """
    if name not in DatasetCatalog.list():
        DatasetCatalog.get(name)  # raises with the known names
    file = MetadataCatalog.get(name).get("json_file")
    status = os.stat(file) if file and os.path.isfile(file) else None
    return _load(name, DatasetCatalog[name], status and (status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=8)
def _load(name: str, load: Callable[[], Any], _status: tuple[int, int] | None) -> Any:
    """Load a dataset; the other arguments make the cache miss if it was registered again or its file has changed."""
    records = load()
    if not isinstance(records, list):
        return records  # a torch dataset
    if not records:
        raise UserError(f"dataset {name} has no images")
    return DatasetFromList(records, copy=False, serialize=True)
