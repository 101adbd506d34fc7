"""Read YOLO segmentation: a ``data.yaml``, and for each image a text file with one line per object.

A line is the class index and the points of a polygon as fractions of the image's sides: ``0 x0 y0 x1 y1 x2 y2 ...``.
A line of five numbers is a box by its center, width and height. The labels of ``images/a.jpg`` are in ``labels/a.txt``.
"""

from pathlib import Path, PurePath
from typing import Any

import yaml

from d2_maskrcnn.data.formats import shapes
from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, ImageFile
from d2_maskrcnn.data.formats.image_references import Reference, add_images, read_lines
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.data.image_reading import is_image_name
from d2_maskrcnn.errors import UserError

_SPLITS = ("train", "val", "valid", "test")


def read(source: Source) -> Dataset:
    """Read the images and labels that a ``data.yaml`` names.

    Raises:
        UserError: there is more than one ``data.yaml``, or it does not name classes and folders that exist.
    """
    if len(source.files) > 1:
        names = ", ".join(map(str, source.files[:3]))
        raise UserError(f"{source.path}: {len(source.files)} data.yaml files ({names}); name one of them")
    file = source.files[0]
    content = yaml.safe_load(file.read_text(encoding="utf-8-sig", errors="replace"))
    dataset = Dataset(str(file), "yolo", categories=_categories(content["names"], file))
    entries = [(split, _places(content, split, file)) for split in _SPLITS if content.get(split)]
    single = len({tuple(folders) for _, folders in entries}) == 1
    seen: set[Path] = set()
    for split, places in entries:
        for place in places:
            split_name = "" if single and place.name == "images" else {"valid": "val"}.get(split, split)
            _add_place(dataset, place, split_name, seen)
    if not seen:
        raise UserError(f"{file}: 'train', 'val' and 'test' name no images; expected folders of images")
    return dataset


def _categories(names: Any, file: Path) -> list[Category]:
    """Return the classes with ids from 1 on, one more than their index."""
    if isinstance(names, dict) and all(type(key) is int and key >= 0 for key in names):
        return [Category(key + 1, str(name)) for key, name in sorted(names.items())]
    if isinstance(names, list):
        return [Category(index + 1, str(name)) for index, name in enumerate(names)]
    raise UserError(f"{file}: 'names' is {names!r:.60}; expected a list of class names, or a dict of them by index")


def _places(content: dict[str, Any], split: str, file: Path) -> list[Path]:
    """Return the folders, or text files with names of images, of a split."""
    given = content[split] if isinstance(content[split], list) else [content[split]]
    roots = [file.parent / str(content.get("path") or ""), file.parent]
    places = []
    for name in map(str, given):
        # Roboflow's files name folders relative to a folder beside the file's own.
        tried = [root / each for root in roots for each in (name, name.removeprefix("../"))]
        place = next((path for path in tried if path.exists()), None)
        if place is None and split != "test":
            raise UserError(f"{file}: {split!r} is {name!r}, which does not exist in {file.parent}; correct 'path'")
        places += [] if place is None else [place]
    return places


def _add_place(dataset: Dataset, place: Path, split: str, seen: set[Path]) -> None:
    if place.is_dir():
        paths = sorted(path for path in place.rglob("*") if is_image_name(path) and path.is_file())
        root = place
    else:
        paths, root = [place.parent / line for line in read_lines(place) if line], place.parent
    paths = [path for path in paths if path not in seen]
    seen.update(paths)
    names = [str(path.relative_to(root)) if path.is_relative_to(root) else path.name for path in paths]
    references = [
        Reference(name, str(path), split, folders=[root, path.parent]) for name, path in zip(names, paths, strict=True)
    ]
    images = add_images(dataset, references, [])
    for index, path in enumerate(paths):
        labels = _label_file(path)
        if index in images and labels.is_file():
            _add_labels(dataset, images[index], labels)


def _label_file(image: Path) -> Path:
    """Return where the labels of an image are: in ``labels`` instead of the innermost ``images``, or beside it."""
    parts = list(image.with_suffix(".txt").parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(PurePath(*parts))


def _add_labels(dataset: Dataset, image: ImageFile, path: Path) -> None:
    known = {category.id for category in dataset.categories}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        where = f"{path}: line {number}"
        with dataset.dropping(where):
            values = shapes.numbers(line.split(), "values")
            if values[0] + 1 not in known:
                raise UserError("a class index that 'names' does not contain")
            polygon = _polygon(values[1:], image)
            dataset.annotations.append(
                Annotation(image.id, int(values[0]) + 1, [polygon], id=len(dataset.annotations) + 1, where=where)
            )


def _polygon(values: list[float], image: ImageFile) -> list[float]:
    width, height = image.width, image.height
    if len(values) == 4:
        x, y, w, h = values
        return shapes.rectangle((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
    if len(values) < 6 or len(values) % 2:
        raise UserError("a polygon of fewer than 3 points, or with an odd number of coordinates")
    if max(values) > 2:
        raise UserError("coordinates above 2; expected fractions of the image's sides")
    # Fractions have few digits, and pixels are far coarser than 1e-4: corners of pixels become whole numbers again.
    return [round(value * side, 4) for value, side in zip(values, [width, height] * (len(values) // 2), strict=True)]
