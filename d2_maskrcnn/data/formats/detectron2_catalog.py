"""Read datasets that are registered in Detectron2's catalog."""

import os
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, common_folder
from d2_maskrcnn.data.formats.image_references import Reference, add_images
from d2_maskrcnn.structures.masks import Rle
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode


def is_registered(name: str) -> bool:
    """Return whether Detectron2's catalog has a dataset of this name."""
    return name in DatasetCatalog.list()


def read_registered(name: str) -> Dataset:
    """Read a registered dataset, whatever the box mode of its annotations."""
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    dataset = Dataset(name, "registered")
    paths = [os.path.abspath(record["file_name"]) for record in records]
    root = common_folder(paths) if paths else Path()
    references = [
        Reference(
            Path(path).relative_to(root).as_posix(),
            f"{name}: image {record.get('image_id', index)}",
            id=index + 1,
            declared_size=(record.get("width"), record.get("height")),
        )
        for index, (path, record) in enumerate(zip(paths, records, strict=True))
    ]
    images = add_images(dataset, references, [root])
    for index, image in images.items():
        image.source_id = records[index].get("image_id")
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    numbers = {index: number for number, index in ids.items()}
    for index, category in enumerate(metadata.get("thing_classes") or []):
        dataset.categories.append(Category(numbers.get(index, index + 1), category))
    for index, record in enumerate(records):
        for number, entry in enumerate(record.get("annotations", [])):
            where = f"{references[index].where}: annotation {number}"
            if index in images:
                _add(dataset, images[index].id, entry, where)
            else:
                dataset.drop("annotation", where, "its image was dropped")
    return dataset


def _add(dataset: Dataset, image_id: int, entry: dict[str, Any], where: str) -> None:
    index = entry.get("category_id")
    if type(index) is not int or index < 0 or (dataset.categories and index >= len(dataset.categories)):
        dataset.drop("annotation", where, "unknown category_id", index)
        return
    category = dataset.categories[index].id if dataset.categories else dataset.add_category(str(index))
    mode = entry.get("bbox_mode", BoxMode.XYWH_ABS)
    box = [float(side) for side in BoxMode.convert(list(entry["bbox"]), mode, BoxMode.XYWH_ABS)]
    segmentation: list[Any] | Rle = entry.get("segmentation") or []
    if isinstance(segmentation, list):
        segmentation = [[float(value) for value in polygon] for polygon in segmentation]
    number = len(dataset.annotations) + 1
    crowd = int(entry.get("iscrowd", 0) == 1)
    dataset.annotations.append(Annotation(image_id, category, segmentation, box, crowd, number, where=where))
