import importlib.util
from pathlib import Path

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(scope="session")
def tiny():
    """The module tiny.py of this folder."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dataset(tiny, tmp_path):
    name = tiny.make_dataset(tmp_path / "images", "tiny_images")
    yield name
    for registered in [n for n in DatasetCatalog.list() if n.startswith(name)]:
        DatasetCatalog.remove(registered)
        MetadataCatalog.remove(registered)
