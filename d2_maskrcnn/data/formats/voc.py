"""Read Pascal VOC: one PNG of object numbers and one of class numbers per image.

Objects are in ``SegmentationObject``, classes in ``SegmentationClass``, images in ``JPEGImages``, and the splits in
``ImageSets/Segmentation/*.txt``. 0 is background, 255 void. Classes are named by ``class_names.txt`` (LabelMe) or
``labelmap.txt`` (CVAT); otherwise they are VOC's 20.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile, merge
from d2_maskrcnn.data.formats.image_references import Reference, add_images, read_lines
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.data.image_reading import COLOR, is_image_name, palette_of, read_labels
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import Window, encode_rle

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255
_VOID_COLOR = COLOR + (224 << 16) + (224 << 8) + 192
_DENSE = 2**17  # numbers up to which an index mask needs no renumbering; colors have larger ones
NO_OBJECTS = ("background", "_background_", "__ignore__", "ignored")


def read(source: Source) -> Dataset:
    """Read folders of VOC."""
    parts = [_read_folder(folder, source) for folder in source.files]
    return parts[0] if len(parts) == 1 else merge(str(source.path), parts)


def _read_folder(root: Path, source: Source) -> Dataset:
    dataset = Dataset(str(root), "voc")
    masks = sorted(path for path in (root / "SegmentationObject").iterdir() if is_image_name(path))
    splits = _splits(root)
    near = [
        root / "JPEGImages",
        root / "images",
        root,
        *sorted(path for path in root.parent.iterdir() if path.is_dir()),
    ]
    folders = [source.images] if source.images else [*near, *(path / "JPEGImages" for path in near[3:])]
    references = [
        Reference(image_name(path.stem, folders), str(path), splits.get(path.stem, ""), folders=folders)
        for path in masks
    ]
    images = add_images(dataset, references, folders)
    names = _class_names(root)
    for name in names if names is not VOC_CLASSES else ():
        if name not in NO_OBJECTS:
            dataset.add_category(name)
    for index, path in enumerate(masks):
        if index in images:
            try:
                _add_objects(dataset, images[index], path, root, names, source)
            except UserError as error:
                dataset.drop("file", str(path), "a mask that cannot be used", str(error).removeprefix(f"{path}: "))
    return dataset


def image_name(stem: str, folders: Sequence[Path]) -> str:
    """Return the name of the image with this stem, whatever its suffix; without suffix if there is none."""
    for folder in folders:
        for suffix in (".jpg", ".png", ".jpeg", ".JPG", ".tif", ".tiff", ".bmp", ".webp"):
            if (folder / f"{stem}{suffix}").is_file():
                return f"{stem}{suffix}"
    return stem


def _splits(root: Path) -> dict[str, str]:
    """Return the split of each image, from the lists other than ``trainval.txt``."""
    lists = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    named = [path for path in lists if path.stem not in ("trainval", "default")]
    return {line.split()[0]: path.stem for path in named for line in read_lines(path) if line}


def _class_names(root: Path) -> Sequence[str]:
    """Return the class names by number."""
    for folder in (root, root.parent):
        path = folder / "class_names.txt"
        if path.is_file():
            return [line for line in read_lines(path) if line and line != "__ignore__"]
    lines = _labelmap(root)
    return [name for name, _ in lines] if lines else VOC_CLASSES


def _labelmap(root: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and colors of CVAT's ``labelmap.txt``: lines ``name:red,green,blue:parts:actions``."""
    path = root / "labelmap.txt"
    if not path.is_file():
        return []
    fields = [line.split(":") for line in read_lines(path) if line and not line.startswith("#")]
    colors = [tuple(int(each) for each in "".join(field[1:2]).split(",") if each.isdigit()) for field in fields]
    return [(field[0], color) for field, color in zip(fields, colors, strict=True)]


def _add_objects(
    dataset: Dataset, image: ImageFile, path: Path, root: Path, names: Sequence[str], source: Source
) -> None:
    class_file = root / "SegmentationClass" / path.name
    objects, classes = read_labels(path), read_labels(class_file) if class_file.is_file() else None
    for labels in (objects, classes):
        if labels is not None and labels.shape != (image.height, image.width):
            raise UserError(f"{labels.shape[1]}x{labels.shape[0]} pixels, its image {image.width}x{image.height}")
    by_color: dict[tuple[int, ...], str] = {color: name for name, color in _labelmap(root) if len(color) == 3}
    palette = palette_of(class_file) if classes is not None else []
    void = VOID if objects.max(initial=0) <= VOID else -1
    for number, mask, window in objects_of(objects, (0, void, _VOID_COLOR)):
        where = f"{path}: object {number}"
        name: str | None = source.category
        if classes is not None:
            values, counts = np.unique(classes[window.slices][mask], return_counts=True)
            value = int(values[counts.argmax()])
            if value in (VOID, _VOID_COLOR):
                continue  # void pixels, which are no object
            name = _class_name(value, palette, names, by_color)
        if name is None or name in NO_OBJECTS:
            dataset.drop("annotation", where, "a class without a name", value)
            continue
        category = dataset.add_category(name)
        rle = encode_rle(mask, window, objects.shape)
        dataset.annotations.append(Annotation(image.id, category, rle, id=len(dataset.annotations) + 1, where=where))


def _class_name(
    value: int, palette: list[tuple[int, int, int]], names: Sequence[str], by_color: dict[tuple[int, ...], str]
) -> str | None:
    """Return the name of a class by its color, if the colors of classes are known, or else by its number."""
    if value >= COLOR:
        color = ((value - COLOR) >> 16, (value >> 8) & 255, value & 255)
        places = np.flatnonzero((voc_palette() == color).all(axis=1))
        value = int(places[0]) if len(places) else len(names)
    else:
        color = palette[value] if value < len(palette) else (-1, -1, -1)
    return by_color.get(color) or (names[value] if value < len(names) else None)


def voc_palette() -> np.ndarray:
    """Return VOC's colors (256, 3) uint8: the bits of the index, three at a time, are the high bits of R, G and B."""
    index = np.arange(256)[:, None] >> np.arange(0, 24, 3)  # (256, 8), groups of three bits
    bits = (index[:, :, None] >> np.arange(3)) & 1  # (256, 8, 3)
    return (bits << np.arange(7, -1, -1)[None, :, None]).sum(axis=1).astype(np.uint8)


def objects_of(labels: np.ndarray, ignored: Sequence[int]) -> list[tuple[int, np.ndarray, Window]]:
    """Return the number, the mask (h, w) bool and the place of each object of an index mask (H, W) int64."""
    highest = int(labels.max(initial=0))
    if highest < _DENSE:
        numbers, index = np.arange(highest + 1), labels.astype(np.int32)
    else:
        numbers, places = np.unique(labels, return_inverse=True)
        index = places.reshape(labels.shape).astype(np.int32) + 1
        numbers = np.concatenate(([0], numbers))
    from scipy.ndimage import find_objects  # slow to import, and predictions import this module

    found = []
    for position, slices in enumerate(find_objects(index), start=1):
        if slices is None or numbers[position] in ignored:
            continue
        rows, columns = slices
        window = Window(columns.start, rows.start, columns.stop, rows.stop)
        found.append((int(numbers[position]), index[slices] == position, window))
    return found
