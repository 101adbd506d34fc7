"""Read and write annotations of many tools: one file per format, with one dataset in memory between them.

:func:`read` recognizes the format by content; see :mod:`d2_maskrcnn.data.formats.dataset` for what it returns.
"""

import importlib
from pathlib import Path

from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, Dropped, ImageFile
from d2_maskrcnn.data.formats.recognition import FORMATS, Source, recognize
from d2_maskrcnn.errors import UserError


def read(
    path: Path | str,
    images: Path | str | None = None,
    category: str = "object",
    category_attribute: str | None = None,
) -> Dataset:
    """Read a dataset in any of :data:`FORMATS`, recognized by its content.

    Values are not checked; :func:`d2_maskrcnn.data.formats.cleaning.clean` drops those that cannot be used.

    Args:
        path: an annotation file, or the folder of a dataset.
        images: folder of the images; None searches near the annotations.
        category: name for objects without a category, such as those of PNG masks.
        category_attribute: the region attribute of VIA that contains the category; None chooses one.

    Raises:
        UserError: nothing is there, in no known format, or in several. What is wrong with single entries is in
            :attr:`Dataset.dropped` instead.
    """
    source = recognize(path)
    source.category, source.category_attribute = category, category_attribute
    if images is not None:
        source.images = Path(images).expanduser()
        if not source.images.is_dir():
            raise UserError(f"{source.images}: no such folder; expected the images of {path} there")
    module = importlib.import_module(f"d2_maskrcnn.data.formats.{source.format.replace('-', '_')}")
    dataset: Dataset = module.read(source)
    dataset.source, dataset.format, dataset.files = str(path), source.format, source.files
    for file, reason in source.broken:
        dataset.drop("file", str(file), "a file that cannot be read", reason)
    return dataset


__all__ = ["FORMATS", "Annotation", "Category", "Dataset", "Dropped", "ImageFile", "Source", "read", "recognize"]
