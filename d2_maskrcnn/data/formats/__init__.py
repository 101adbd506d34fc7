"""Read and write annotations of many tools: one file per format, and one dataset in memory between them.

:func:`read` recognizes the format by content; see :mod:`d2_maskrcnn.data.formats.dataset` for what it returns.
"""

import importlib
from pathlib import Path

from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, Dropped, ImageFile
from d2_maskrcnn.data.formats.recognition import FORMATS, Source, recognize

_READERS = {"coco": "coco"}


def read(path: Path | str) -> Dataset:
    """Read a dataset in any of :data:`FORMATS`, recognized by its content.

    Args:
        path: an annotation file, or the folder of a dataset.

    Raises:
        UserError: nothing is there, or in no known format. What is wrong with single entries is in
            :attr:`Dataset.dropped` instead.
    """
    source = recognize(path)
    module = importlib.import_module(f"d2_maskrcnn.data.formats.{_READERS[source.format]}")
    dataset: Dataset = module.read(source)
    return dataset


__all__ = ["FORMATS", "Annotation", "Category", "Dataset", "Dropped", "ImageFile", "Source", "read", "recognize"]
