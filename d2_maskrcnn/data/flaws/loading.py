"""Load a dataset to check: a file or folder of any format, a registered dataset, or a dataset in memory."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.coco.reader import check_coco, read_coco_json
from d2_maskrcnn.data.coco.writing import to_coco
from d2_maskrcnn.data.flaws.flaw import EXAMPLES, Flaw
from d2_maskrcnn.data.flaws.images import candidate_folders, is_inside
from d2_maskrcnn.data.formats import read, recognize
from d2_maskrcnn.data.formats.dataset import Dataset, Dropped, common_folder
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

_PROBED = 50  # images that are looked up to choose their folder
_PLURALS = {"file": "files", "image": "images", "annotation": "annotations", "category": "categories"}


@dataclass
class Content:
    """One part of a dataset, such as its training images, as the content of a COCO JSON.

    Attributes:
        name: the file, folder or registered name, with the split if the source has several.
        data: lists of unchecked ``images``, ``annotations`` and ``categories``.
        image_root: folder that ``file_name`` is relative to; None if it is not known.
        split: "train", "val", ...; "" if it is not known.
        files: the annotation files, which must not be overwritten.
        dropped: what the reader of another format left out.
    """

    name: str
    data: dict[str, Any]
    image_root: Path | None
    split: str = ""
    files: list[Path] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def load_contents(source: str | Path | Dataset, image_root: Path | None = None) -> list[Content]:
    """Load the parts of a dataset without checking their values.

    Args:
        source: an annotation file or the folder of a dataset, in any format of :mod:`d2_maskrcnn.data.formats`; the
            name of a registered dataset; or a dataset in memory.
        image_root: folder of the images; None searches near the annotations.

    Raises:
        UserError: nothing is there, in no known format, or not JSON.
    """
    if isinstance(source, Dataset):
        return _from_dataset(source)
    if str(source) in DatasetCatalog.list() and not Path(source).exists():
        return [_from_catalog(str(source))]
    found = recognize(source)
    if found.format != "coco":
        return _from_dataset(read(source, image_root))
    contents = []
    for path in found.files:
        data = check_coco(path, found.document(path), annotations_required=False)
        contents.append(Content(str(path), data, image_root or _image_root(path, data), _split_of(path), [path]))
    return contents


def _image_root(path: Path, data: dict[str, Any]) -> Path:
    """Return the folder near a COCO JSON that contains most of its first images."""
    listed = [image.get("file_name") for image in data["images"] if isinstance(image, dict)]
    names = [name for name in listed if isinstance(name, str) and name and "\0" not in name]
    if names and all(map(os.path.isabs, names)):
        return common_folder(names)
    folders = candidate_folders(path)
    probed = names[:_PROBED]
    hits = [sum(is_inside(folder, name) and os.path.isfile(folder / name) for name in probed) for folder in folders]
    return folders[hits.index(max(hits))]


def _split_of(path: Path) -> str:
    words = path.stem.lower() if path.stem != "_annotations.coco" else path.parent.name.lower()
    return next((split for split in ("train", "val", "test") if split in words), "")


def _from_dataset(dataset: Dataset) -> list[Content]:
    splits = dataset.splits() or [""]
    root = dataset.image_root() if dataset.images else None
    contents = []
    for split in splits:
        images = [image for image in dataset.images if image.split == split]
        ids = {image.id for image in images}
        annotations = [each for each in dataset.annotations if each.image_id in ids]
        part = Dataset(dataset.source, dataset.format, images, dataset.categories, annotations)
        data = to_coco(part)
        for entry, image in zip(data["images"], images, strict=True):
            entry["file_name"] = Path(os.path.relpath(image.path, root)).as_posix()
            if image.declared_size is not None and all(type(side) is int and side > 0 for side in image.declared_size):
                entry["width"], entry["height"] = image.declared_size
        name = f"{dataset.source} ({split})" if split and len(splits) > 1 else dataset.source
        contents.append(Content(name, data, root, split, [Path(dataset.source)]))
    contents[0].dropped = dataset.dropped
    return contents


def _from_catalog(name: str) -> Content:
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file"):
        path = Path(metadata.json_file)
        root = metadata.get("image_root")
        data = read_coco_json(path, annotations_required=False)
        return Content(name, data, Path(root) if root else None, _split_of(Path(name)), [path])
    records = DatasetCatalog.get(name)
    names = list(MetadataCatalog.get(name).get("thing_classes") or [])
    annotations = list(_annotations(records))
    classes = range(max([len(names), *(each["category_id"] + 1 for each in annotations)], default=0))
    data = {
        "images": [
            {"id": index + 1, "file_name": os.path.abspath(record["file_name"]), "width": record.get("width"),
             "height": record.get("height")}
            for index, record in enumerate(records)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": names[i] if i < len(names) else f"class {i}"} for i in classes],
    }  # fmt: skip
    files = [image["file_name"] for image in data["images"]]
    root = common_folder(files) if files else None
    for image in data["images"]:
        image["file_name"] = os.path.relpath(image["file_name"], root)
    return Content(name, data, root, _split_of(Path(name)))


def _annotations(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Convert the annotations of records in Detectron2's standard format to COCO's."""
    number = 0
    for index, record in enumerate(records):
        for annotation in record.get("annotations", []):
            number += 1
            mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
            box = [float(side) for side in BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYWH_ABS)]
            yield {
                "id": number,
                "image_id": index + 1,
                "category_id": int(annotation["category_id"]),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(annotation.get("iscrowd", 0)),
                "segmentation": annotation.get("segmentation"),
            }


def check_dropped(dropped: list[Dropped]) -> Iterator[Flaw]:
    """Yield what the reader of another format left out, by reason."""
    by_reason = sorted(dropped, key=lambda each: (each.kind, each.reason))
    for (kind, reason), group in groupby(by_reason, key=lambda each: (each.kind, each.reason)):
        entries = list(group)
        examples = tuple(f"{each.where} {each.detail}".strip() for each in entries[:EXAMPLES])
        what = f"{_PLURALS.get(kind, kind)} left out: {reason}"
        yield Flaw("not-readable", "error", len(entries), what, examples, "correct them in the annotation tool")
