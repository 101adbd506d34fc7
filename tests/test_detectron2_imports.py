"""Import what public programs import: detectron2_imports.json has the names, by module, of 22 public projects."""

import importlib
import json
from pathlib import Path

import pytest

import d2_maskrcnn

IMPORTS = json.loads((Path(__file__).parent / "detectron2_imports.json").read_text())
EMBEDDED = d2_maskrcnn.engine_info().name == "embedded"
# Parts of older versions, and of a project that needs further packages: an installed Detectron2 may not have them.
OPTIONAL = ("detectron2.export", "detectron2.projects.panoptic_deeplab")


def find(module, name):
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("module", IMPORTS)
def test_every_name_can_be_imported(module):
    if not EMBEDDED and module.startswith(OPTIONAL):
        pytest.skip("an installed Detectron2 decides which of its optional parts it has")
    for name in IMPORTS[module].split():
        found = find(module, name)
        if type(found).__name__ == "_Placeholder":
            with pytest.raises(RuntimeError, match="install Detectron2 to use it"):
                found()
