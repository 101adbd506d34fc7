"""Load a COCO JSON file as dataset records, with the reader and the schema of the checks."""

import os
from collections import defaultdict
from typing import Any

from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.data.flaws.coco_table import CocoTable
from d2_maskrcnn.data.flaws.flaw import summarize
from d2_maskrcnn.data.flaws.ids import check_ids
from d2_maskrcnn.data.flaws.schema import check_structure
from d2_maskrcnn.data.formats.image_references import is_inside
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import segmentation_to_rle
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

Record = dict[str, Any]


def register_coco_json(name: str, json_file: str | os.PathLike[str], image_root: str | os.PathLike[str]) -> None:
    """Register a COCO JSON file as a dataset, as Detectron2's ``register_coco_instances`` with this plugin's reader.

    Args:
        name: the name for ``DATASETS``.
        json_file: the file; read when the dataset is used.
        image_root: folder that its ``file_name`` entries are relative to.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)

    def load() -> list[Record]:
        records, categories = load_records(json_file, image_root)
        metadata = MetadataCatalog.get(name)
        metadata.thing_classes = list(categories.values())
        metadata.thing_dataset_id_to_contiguous_id = {number: index for index, number in enumerate(categories)}
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco")


def load_records(
    json_file: str | os.PathLike[str], image_root: str | os.PathLike[str] | None
) -> tuple[list[Record], dict[int, str]]:
    """Load a COCO JSON file in Detectron2's standard dataset format.

    Args:
        json_file: the file.
        image_root: folder that its ``file_name`` entries are relative to; None keeps them as they are.

    Returns:
        The records by ascending image id, and the categories (id -> name) by ascending id, which is the order of the
        ``category_id`` 0, 1, ... in the records. A record has ``file_name``, ``height``, ``width``, ``image_id`` and,
        if the file has any annotations, ``annotations`` with ``bbox`` (XYWH in pixels), ``bbox_mode``,
        ``category_id``, ``iscrowd`` and ``segmentation`` (polygons or compressed RLE) as far as the file has them.

    Raises:
        UserError: the file is not COCO JSON, or its entries lack what every reader needs. Values are checked by
            :func:`~d2_maskrcnn.data.coco.checks.check_coco_json`.
    """
    data = read_coco_json(json_file, annotations_required=False)
    _check(data, json_file)
    categories = {each["id"]: each["name"] for each in sorted(data["categories"], key=lambda each: each["id"])}
    classes = {number: index for index, number in enumerate(categories)}
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in data["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    records = []
    for image in sorted(data["images"], key=lambda each: each["id"]):
        record = {
            "file_name": _file_name(image["file_name"], image_root, json_file),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
        }
        if data["annotations"]:
            record["annotations"] = [_to_annotation(each, classes, image, json_file) for each in of_image[image["id"]]]
        records.append(record)
    return records, categories


def _check(data: dict[str, Any], json_file: str | os.PathLike[str]) -> None:
    flaws = list(check_structure(data, evaluate=False))
    flaws = flaws or [each for each in check_ids(CocoTable(data), evaluate=False) if each.severity == "error"]
    if flaws:
        raise UserError(summarize(os.fspath(json_file), flaws))


def _file_name(name: str, image_root: str | os.PathLike[str] | None, json_file: str | os.PathLike[str]) -> str:
    if image_root is None:
        return name
    if not is_inside(image_root, name):
        raise UserError(f"{json_file}: the image {name} is outside of its folder {image_root}")
    return os.path.join(image_root, name)


def _to_annotation(
    annotation: dict[str, Any], classes: dict[int, int], image: dict[str, Any], json_file: str | os.PathLike[str]
) -> Record:
    result: Record = {key: annotation[key] for key in ("iscrowd", "bbox") if key in annotation}
    result.update(bbox_mode=BoxMode.XYWH_ABS, category_id=classes[annotation["category_id"]])
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        try:
            segmentation = segmentation_to_rle(segmentation, image["height"], image["width"])
        except UserError as error:
            raise UserError(f"{json_file}: annotation {annotation['id']}: {error}") from error
    if segmentation:
        result["segmentation"] = segmentation
    return result
