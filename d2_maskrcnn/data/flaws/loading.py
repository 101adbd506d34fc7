"""Load a dataset to check: a file or folder of any format, a registered dataset, or a dataset in memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.coco.reader import check_coco, read_coco_json
from d2_maskrcnn.data.coco.writing import to_coco
from d2_maskrcnn.data.flaws.flaw import EXAMPLES, Flaw
from d2_maskrcnn.data.formats import read, recognize
from d2_maskrcnn.data.formats.dataset import Dataset, Dropped, usual_split
from d2_maskrcnn.data.formats.detectron2_catalog import is_registered, read_registered
from d2_maskrcnn.data.formats.image_references import nearest_image_folder
from detectron2.data import MetadataCatalog

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

    def entries_with(self, entries: str, key: str, value: Any) -> list[dict[str, Any]]:
        """Return the objects of a list, such as ``annotations``, with this value of ``key``."""
        return [each for each in self.data[entries] if type(each) is dict and each.get(key) == value]


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
    if is_registered(str(source)) and not Path(source).exists():
        return [_from_catalog(str(source))]
    found = recognize(source)
    if found.format != "coco":
        return _from_dataset(read(source, image_root))
    contents = []
    for path in found.files:
        data = check_coco(path, found.document(path), annotations_required=False)
        names = [image.get("file_name") for image in data["images"] if isinstance(image, dict)]
        root = image_root or nearest_image_folder(path, names)[0]
        contents.append(Content(str(path), data, root, usual_split(path), [path]))
    return contents


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
        return Content(name, data, Path(root) if root else None, usual_split(Path(name)), [path])
    return _from_dataset(read_registered(name))[0]


def check_dropped(dropped: list[Dropped]) -> Iterator[Flaw]:
    """Yield what the reader of another format left out, by reason."""
    by_reason = sorted(dropped, key=lambda each: (each.kind, each.reason))
    for (kind, reason), group in groupby(by_reason, key=lambda each: (each.kind, each.reason)):
        entries = list(group)
        examples = tuple(f"{each.where} {each.detail}".strip() for each in entries[:EXAMPLES])
        what = f"{_PLURALS.get(kind, kind)} left out: {reason}"
        yield Flaw("not-readable", "error", len(entries), what, examples, "correct them in the annotation tool")
