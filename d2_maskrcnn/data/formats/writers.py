"""Write datasets for training: COCO JSON, YOLO, LabelMe and Pascal VOC.

Each writer takes a dataset that :func:`~d2_maskrcnn.data.formats.cleaning.clean` has completed and adds files to an
:class:`~d2_maskrcnn.data.formats.output.Output`. What the format cannot express is dropped with the reason.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image

from d2_maskrcnn.data.coco.writing import to_coco
from d2_maskrcnn.data.formats import labelme, shapes
from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile
from d2_maskrcnn.data.formats.output import Output, target_names
from d2_maskrcnn.data.formats.voc import NO_OBJECTS, VOID, voc_palette

_LABELME_VERSION = "5.5.0"


def write_coco(dataset: Dataset, output: Output, notes: Counter[str]) -> None:
    """Add ``annotations/instances_SPLIT.json`` and ``SPLIT/*``.

    Without splits these are ``annotations/instances_default.json``, as CVAT names it, and ``images/*``.
    Ids of images and annotations are the source's where they are different integers, otherwise they count from 1.
    """
    of_images = dataset.annotations_of_images()
    for split in dataset.splits():
        images = [image for image in dataset.images if image.split == split]
        annotations = [annotation for image in images for annotation in of_images[image.id]]
        data = to_coco(replace(dataset, images=images, annotations=annotations))
        numbers = [image.source_id for image in images]
        if len(set(numbers)) < len(numbers) or not all(type(each) is int and each >= 0 for each in numbers):
            numbers = list(range(1, len(images) + 1))
        ids = {image.id: number for image, number in zip(images, numbers, strict=True)}
        for entry, image in zip(data["images"], images, strict=True):
            entry.update(id=ids[image.id], file_name=image.name)
            output.images[f"{split or 'images'}/{image.name}"] = image
        for entry, annotation in zip(data["annotations"], annotations, strict=True):
            entry["image_id"] = ids[annotation.image_id]
            if annotation.score is not None:
                entry["score"] = round(annotation.score, 5)
        output.add(f"annotations/instances_{split or 'default'}.json", json.dumps(data, ensure_ascii=False))


def write_yolo(dataset: Dataset, output: Output, notes: Counter[str]) -> None:
    """Add ``data.yaml``, ``images/SPLIT/*`` and ``labels/SPLIT/*.txt``; parts and holes are connected by bridges."""
    classes = {category.id: index for index, category in enumerate(dataset.categories)}
    names, of_images = target_names(dataset), dataset.annotations_of_images()
    for image in dataset.images:
        lines = []
        for annotation in of_images[image.id]:
            if annotation.iscrowd:
                dataset.drop("annotation", annotation.where, "a crowd, which YOLO cannot express")
                continue
            polygon = shapes.to_one_polygon(annotation.segmentation, image)
            sides = (image.width, image.height) * (len(polygon) // 2)
            fractions = " ".join(f"{value / side:.9g}" for value, side in zip(polygon, sides, strict=True))
            lines.append(f"{classes[annotation.category_id]} {fractions}\n")
        output.images[f"images/{names[image.id]}"] = image
        output.add(str(PurePosixPath("labels", names[image.id]).with_suffix(".txt")), "".join(lines))
    yolo = {**_yolo_folders(dataset.splits()), "names": dict(enumerate(each.name for each in dataset.categories))}
    output.add("data.yaml", yaml.safe_dump(yolo, sort_keys=False, allow_unicode=True))


def _yolo_folders(splits: list[str]) -> dict[str, str]:
    """Return the folders of a ``data.yaml``, which needs ``train`` and ``val`` even if there is only one split."""
    folders: dict[str, str] = {}
    for split in splits:
        usual = next((key for key in ("train", "val", "test") if split.startswith(key)), "train")
        key = usual if usual not in folders else split
        folders[key] = f"images/{split}".rstrip("/")
    first = next(iter(folders.values()), "images")
    return {"train": folders.get("train", first), "val": folders.get("val", first), **folders}


def _without_reserved(dataset: Dataset, names: Sequence[str], tool: str) -> Dataset:
    """Return the dataset without the objects of classes whose names mean "no object" in a format; drop these."""
    reserved = {each.id: each.name for each in dataset.categories if each.name in names}
    for each in dataset.annotations:
        if each.category_id in reserved:
            reason = f"a class called {reserved[each.category_id]}, which is no object in {tool}: rename it"
            dataset.drop("annotation", each.where, reason)
    categories = [each for each in dataset.categories if each.id not in reserved]
    annotations = [each for each in dataset.annotations if each.category_id not in reserved]
    return replace(dataset, categories=categories, annotations=annotations)


def write_labelme(dataset: Dataset, output: Output, notes: Counter[str]) -> None:
    """Add an image and a JSON file of the same name each, in a folder per split, and ``labels.txt``."""
    dataset = _without_reserved(dataset, labelme.NO_OBJECTS, "LabelMe")
    categories = {category.id: category.name for category in dataset.categories}
    names, of_images = target_names(dataset), dataset.annotations_of_images()
    for image in dataset.images:
        path = PurePosixPath(names[image.id])
        found: list[dict[str, Any]] = []
        for number, annotation in enumerate(of_images[image.id], start=1):
            found += _labelme_shapes(annotation, categories[annotation.category_id], image, number)
        content: dict[str, Any] = {
            "version": _LABELME_VERSION,
            "flags": {},
            "shapes": found,
            "imagePath": path.name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        output.images[str(path)] = image
        output.add(str(path.with_suffix(".json")), json.dumps(content, ensure_ascii=False, indent=1))
    output.add("labels.txt", "".join(f"{name}\n" for name in ("__ignore__", "_background_", *categories.values())))


def _labelme_shapes(annotation: Annotation, label: str, image: ImageFile, number: int) -> list[dict[str, Any]]:
    """Return one shape per polygon, in one group, or a mask for what is stored as an RLE."""
    flags = {"crowd": True} if annotation.iscrowd else {}
    common = {"label": label, "group_id": None, "description": "", "flags": flags}
    if isinstance(annotation.segmentation, list):
        polygons = [np.reshape(each, (-1, 2)).tolist() for each in annotation.segmentation]
        group = number if len(polygons) > 1 else None
        return [
            {**common, "group_id": group, "points": each, "shape_type": "polygon", "mask": None} for each in polygons
        ]
    mask, (x, y) = shapes.mask_of(annotation.segmentation, image)
    png = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(png, "PNG")
    corners = [[float(x), float(y)], [float(x + mask.shape[1] - 1), float(y + mask.shape[0] - 1)]]
    encoded = base64.b64encode(png.getvalue()).decode("ascii")
    return [{**common, "points": corners, "shape_type": "mask", "mask": encoded}]


def write_voc(dataset: Dataset, output: Output, notes: Counter[str]) -> None:
    """Add ``JPEGImages``, ``SegmentationObject``, ``SegmentationClass``, ``ImageSets`` and the class names.

    ``class_names.txt`` is LabelMe's form, ``labelmap.txt`` CVAT's. Crowds become void. Where objects overlap, the
    smaller one is on top.
    """
    dataset = _without_reserved(dataset, NO_OBJECTS, "Pascal VOC")
    hidden: list[float] = []
    classes = {category.id: index for index, category in enumerate(dataset.categories, start=1)}
    flat, of_images = _flat_names(dataset), dataset.annotations_of_images()
    lists: dict[str, list[str]] = {split or "default": [] for split in dataset.splits()}
    for image in dataset.images:
        stem, _, suffix = flat[image.id].rpartition(".")
        objects, kinds = _index_masks(dataset, image, of_images[image.id], classes, hidden)
        output.images[f"JPEGImages/{stem}.{suffix}"] = image
        output.add(f"SegmentationObject/{stem}.png", _index_png(objects))
        output.add(f"SegmentationClass/{stem}.png", _index_png(kinds))
        lists[image.split or "default"].append(stem)
    for split, stems in lists.items():
        output.add(f"ImageSets/Segmentation/{split}.txt", "".join(f"{stem}\n" for stem in stems))
    if hidden:
        share = f"on average {np.mean(hidden):.1%} of their pixels"
        notes[f"objects cut by smaller ones, because a pixel has one object in Pascal VOC: {share}"] = len(hidden)
    lines = ["__ignore__", "_background_", *(category.name for category in dataset.categories)]
    output.add("class_names.txt", "".join(f"{line}\n" for line in lines))
    colors = [*zip(["background", *lines[2:]], voc_palette().tolist(), strict=False), ("ignored", voc_palette()[VOID])]
    rows = [f"{name.replace(':', ' ')}:{red},{green},{blue}::\n" for name, (red, green, blue) in colors]
    output.add("labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(rows))


def _flat_names(dataset: Dataset) -> dict[int, str]:
    """Return a name without folders for each image; splits and numbers are added where names would be equal."""
    own = {image.id: image.name.replace("/", "_") for image in dataset.images}
    with_split = {number: name.replace("/", "_") for number, name in target_names(dataset).items()}
    for names in (own, with_split):
        if len({PurePosixPath(name).with_suffix("") for name in names.values()}) == len(names):
            return names
    return {number: f"{number:06d}_{name}" for number, name in own.items()}


def _index_masks(
    dataset: Dataset, image: ImageFile, annotations: list[Annotation], classes: dict[int, int], hidden: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the objects and of their classes, (H, W) int64 each.

    ``hidden`` gets the share of the pixels, in (0, 1), of each object that others hide a part of.
    """
    objects = np.zeros((image.height, image.width), dtype=np.int64)
    kinds = np.zeros_like(objects)
    sizes: dict[int, int] = {}
    numbers = {id(each): number + (number >= VOID) for number, each in enumerate(annotations, start=1)}
    for annotation in sorted(annotations, key=lambda each: (not each.iscrowd, -each.area)):
        mask, (x, y) = shapes.mask_of(annotation.segmentation, image)
        place = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
        number, kind = numbers[id(annotation)], classes[annotation.category_id]
        if annotation.iscrowd:
            dataset.drop("annotation", annotation.where, "a crowd, which becomes void in VOC")
            number = kind = VOID
        else:
            sizes[number] = int(mask.sum())
        objects[place][mask], kinds[place][mask] = number, kind + (kind >= VOID and not annotation.iscrowd)
    left = np.bincount(objects.ravel(), minlength=max(numbers.values(), default=0) + 1)
    for annotation in annotations:
        number = numbers[id(annotation)]
        if number in sizes and left[number] == 0:
            dataset.drop("annotation", annotation.where, "hidden by smaller objects, which VOC cannot express")
        elif number in sizes and left[number] < sizes[number]:
            hidden.append(1 - left[number] / sizes[number])
    return objects, kinds


def _index_png(values: np.ndarray) -> bytes:
    """Encode numbers as a PNG with VOC's palette, or of 16 bits if there are more than 255."""
    file = io.BytesIO()
    if values.max(initial=0) > VOID:
        Image.fromarray(values.astype(np.uint16)).save(file, "PNG")
        return file.getvalue()
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette(voc_palette().ravel().tolist())
    image.save(file, "PNG")
    return file.getvalue()


WRITERS = {"coco": write_coco, "yolo": write_yolo, "labelme": write_labelme, "voc": write_voc}
