"""Compare the active engine with detectron2_api.json: the part of Detectron2's API that programs rely on.

Per module, the file lists names (``names``) and the parameter names of functions, classes and methods.
"""

import importlib
import importlib.util
import inspect
import json
from pathlib import Path

import pytest
import yaml

import d2_maskrcnn

API = json.loads((Path(__file__).parent / "detectron2_api.json").read_text())
MISSING = Path(d2_maskrcnn.__file__).parent / "_embedded" / "detectron2" / "missing.yaml"
EMBEDDED = d2_maskrcnn.engine_info().name == "embedded"


def find(module, name):
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def parameter_names(function):
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(function).parameters.values()
    return " ".join(stars.get(p.kind, "") + p.name for p in parameters if p.name not in ("self", "cls"))


@pytest.mark.parametrize("module", API)
def test_the_module_has_the_names(module):
    listed = [name for name in API[module] if name != "names"] + API[module].get("names", "").split()
    for name in listed:
        assert type(find(module, name)).__name__ != "_Placeholder", name


@pytest.mark.parametrize("module", API)
def test_the_parameters_have_the_names(module):
    listed = {name: names for name, names in API[module].items() if name != "names"}
    assert {name: parameter_names(find(module, name)) for name in listed} == listed


def names_listed_as_missing():
    for modules in yaml.safe_load(MISSING.read_text()).values():
        for module, names in modules.items():
            yield f"detectron2.{module}", [] if names == "*" else names.split()


@pytest.mark.parametrize(("module", "names"), list(names_listed_as_missing()))
def test_what_is_listed_as_missing_is_part_of_detectron2(module, names):
    if module.startswith("detectron2.projects"):  # installed with Detectron2's sources only
        return
    assert importlib.util.find_spec(module) is not None
    for name in names:
        assert (type(find(module, name)).__name__ in ("_Placeholder", "_MissingModule")) == EMBEDDED, name


@pytest.mark.parametrize("name", ["preprocess_image", "inference", "device", "forward"])
def test_models_have_the_attribute(name):
    from detectron2.modeling import GeneralizedRCNN

    assert hasattr(GeneralizedRCNN, name)
