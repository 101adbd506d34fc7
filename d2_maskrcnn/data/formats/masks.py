"""Read PNG masks: index masks, in which each value but 0 is an object, or one mask per object.

:mod:`d2_maskrcnn.data.formats.mask_layouts` describes the folders. All objects are of one category.
"""

from pathlib import Path

import numpy as np

from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile
from d2_maskrcnn.data.formats.image_references import Reference, add_images
from d2_maskrcnn.data.formats.mask_layouts import mask_files
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.data.formats.voc import objects_of
from d2_maskrcnn.data.image_reading import read_labels
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import encode_rle


def read(source: Source) -> Dataset:
    """Read folders with images and masks; the folders ``train``, ``val`` and ``test`` are splits."""
    dataset = Dataset(str(source.path), "masks")
    category = dataset.add_category(source.category)
    for folder in source.files:
        of_image = mask_files(folder)
        inside = folder.relative_to(source.path).as_posix().removeprefix(".")
        split = inside.split("/")[0]
        known = split if split in ("train", "val", "test") else ""
        place = inside.removeprefix(known).strip("/")
        # In a layout with a folder per image, the images of all folders may have the same name.
        references = [
            Reference(path.name, str(path), known, folders=[path.parent], folder_name=place) for path in of_image
        ]
        images = add_images(dataset, references, [])
        for index, masks in enumerate(of_image.values()):
            for mask in masks if index in images else []:
                _add_objects(dataset, images[index], mask, category, single=len(masks) > 1)
    return dataset


def _add_objects(dataset: Dataset, image: ImageFile, path: Path, category: int, single: bool) -> None:
    """Add the objects of one mask; ``single``: it is one of several masks of its image, so it has one object."""
    try:
        labels = read_labels(path)
        if labels.shape != (image.height, image.width):
            raise UserError(f"{labels.shape[1]}x{labels.shape[0]} pixels, its image {image.width}x{image.height}")
    except UserError as error:
        dataset.drop("file", str(path), "a mask that cannot be used", str(error).removeprefix(f"{path}: "))
        return
    if single:
        labels = (labels > 0).astype(np.int64)
    found = objects_of(labels, (0,))
    if not found:
        dataset.drop("file", str(path), "a mask without any object")
    for number, mask, window in found:
        rle = encode_rle(mask, window, labels.shape)
        where = f"{path}: object {number}"
        dataset.annotations.append(Annotation(image.id, category, rle, id=len(dataset.annotations) + 1, where=where))
