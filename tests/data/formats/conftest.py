"""One image with two objects, a cat and a dog, in the formats of all tools."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn.structures.masks import decode_segmentation

FILES = Path(__file__).parent / "files"
CAT, DOG = (slice(3, 11), slice(2, 12)), (slice(5, 25), slice(20, 30))  # rows, columns


def save_image(path: Path, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (40, 30), "teal")
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def save_mask(path: Path, *values, dtype=np.uint8, palette=False) -> Path:
    """Write an index mask with the objects ``(value, (rows, columns))``."""
    pixels = np.zeros((30, 40), dtype)
    for value, place in values:
        pixels[place] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.fromarray(pixels, "P")
        image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    image.save(path)
    return path


def make_source(root: Path, name: str) -> Path:
    """Write a dataset from one of the files in ``files``, or PNG masks of the kind ``name``; return its folder."""
    if name == "yolo":
        save_image(root / "images" / "train" / "a.png")
        (root / "labels" / "train").mkdir(parents=True)
        shutil.copy(FILES / "yolo.yaml", root / "data.yaml")
        shutil.copy(FILES / "yolo.txt", root / "labels" / "train" / "a.txt")
    elif name == "voc":
        save_image(root / "JPEGImages" / "a.png")
        save_mask(root / "SegmentationObject" / "a.png", (1, CAT), (2, DOG), palette=True)
        save_mask(root / "SegmentationClass" / "a.png", (1, CAT), (2, DOG), palette=True)
        (root / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    else:
        save_image(root / "a.png")
        shutil.copy(next(FILES.glob(f"{name}.*")), root)
    return root


def pixels_of(dataset) -> list[tuple[str, np.ndarray]]:
    """The category and the mask (H, W) bool of each object."""
    names = {category.id: category.name for category in dataset.categories}
    images = {image.id: image for image in dataset.images}
    return [
        (names[each.category_id], decode_segmentation(each.segmentation, images[each.image_id].height,
                                                      images[each.image_id].width))
        for each in dataset.annotations
    ]  # fmt: skip


def is_cat_and_dog(dataset) -> bool:
    """Whether the dataset has exactly the cat and the dog, with all their pixels."""
    found = sorted(pixels_of(dataset), key=lambda each: each[0])
    expected = []
    for name, place in (("cat", CAT), ("dog", DOG)):
        mask = np.zeros((30, 40), bool)
        mask[place] = True
        expected.append((name, mask))
    return len(found) == 2 and all(a[0] == b[0] and (a[1] == b[1]).all() for a, b in zip(found, expected, strict=True))


@pytest.fixture
def source(tmp_path):
    return lambda name: make_source(tmp_path / name, name)
