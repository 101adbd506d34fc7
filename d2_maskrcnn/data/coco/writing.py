"""Write datasets as COCO JSON files that refer to the images where they lie."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_util

from d2_maskrcnn.data.flaws.schema import is_id
from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile, bounding_box, common_folder
from d2_maskrcnn.data.formats.image_references import candidate_folders
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import segmentation_to_rle
from d2_maskrcnn.weights.atomic import write_output


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """Convert a dataset to the content of a COCO JSON; ``file_name`` is absolute.

    Boxes and areas that the dataset does not have are computed from the segmentations. Annotation ids are kept if they
    are different integers above 0; otherwise they are numbered from 1. Other values are not checked.
    """
    images = {image.id: image for image in dataset.images}
    ids = [annotation.id for annotation in dataset.annotations]
    keep = all(is_id(each) and each > 0 for each in ids) and len(set(ids)) == len(ids)
    return {
        "images": [
            {"id": image.id, "file_name": str(image.path), "width": image.width, "height": image.height}
            for image in dataset.images
        ],
        "annotations": [
            _to_entry(annotation, ids[index] if keep else index + 1, images[annotation.image_id])
            for index, annotation in enumerate(dataset.annotations)
        ],
        "categories": [{"id": category.id, "name": category.name} for category in dataset.categories],
    }


def _to_entry(annotation: Annotation, number: int, image: ImageFile) -> dict[str, Any]:
    bbox, area = annotation.bbox, annotation.area
    try:
        if bbox is None:
            bbox = bounding_box(annotation.segmentation, image.height, image.width)
        if area is None and annotation.segmentation:
            area = float(mask_util.area(segmentation_to_rle(annotation.segmentation, image.height, image.width)))
        elif area is None:
            area = bbox[2] * bbox[3]
    except (UserError, ValueError, TypeError, IndexError, OverflowError):  # a malformed box or segmentation
        bbox, area = bbox or [0.0, 0.0, 0.0, 0.0], area or 0.0
    return {
        "id": number,
        "image_id": annotation.image_id,
        "category_id": annotation.category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": annotation.iscrowd,
        "segmentation": annotation.segmentation,
    }


def write_coco_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write the content of a COCO JSON whose ``file_name`` entries are absolute.

    They become relative to the images' folder if that is found from the file (see ``candidate_folders``), so that both
    can be moved together.

    Raises:
        UserError: the file cannot be written.
    """
    names = [image["file_name"] for image in data["images"]]
    folder = common_folder(names) if names else None
    near = next((each for each in candidate_folders(path.absolute()) if _is_in(folder, each)), None)
    if near is not None:
        names = [Path(os.path.relpath(name, near)).as_posix() for name in names]
        images = [{**image, "file_name": name} for image, name in zip(data["images"], names, strict=True)]
        data = {**data, "images": images}
    write_output(path, json.dumps(data, ensure_ascii=False))


def _is_in(folder: Path | None, parent: Path) -> bool:
    return folder is not None and Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(parent))
