"""These tests are about the embedded engine; where Detectron2 itself is in use there is nothing for them to test."""

from pathlib import Path

import pytest

import d2_maskrcnn

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config, items):
    if d2_maskrcnn.engine_info().name == "embedded":
        return
    skip = pytest.mark.skip(reason="the embedded engine is not in use")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
