import pickle
import sys

import pytest
import torch

from detectron2.utils.registry import Registry, _convert_target_to_string, locate
from detectron2.utils.serialize import PicklableWrapper


def test_empty_registry():
    with pytest.raises(KeyError, match=r"'x' found in 'THING' registry! Registered: none"):
        Registry("THING").get("x")


def test_registry():
    registry = Registry("THING")

    @registry.register()
    def first():
        pass

    registry.register(len)
    assert registry.get("first") is first and registry.get("len") is len
    assert "first" in registry and "other" not in registry
    with pytest.raises(KeyError, match=r"'frist'.*'THING'.*Did you mean 'first'.*Registered: first, len"):
        registry.get("frist")
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(len)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sys", sys), ("torch.nn.Linear", torch.nn.Linear), ("torch.nn.Linear.forward", torch.nn.Linear.forward)],
)
def test_locate(name, expected):
    assert locate(name) is expected


@pytest.mark.parametrize("name", ["no_such_module", "no_such_module.x", "torch.nn.NoSuchLayer", "sys.version.x.y"])
def test_locate_nothing(name):
    with pytest.raises(ImportError, match=name.split(".")[-1]):
        locate(name)


def test_locate_does_not_hide_a_modules_own_error(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        locate("needs_more.thing")


def test_wrapper_makes_a_closure_picklable():
    pytest.importorskip("cloudpickle")
    base = 3
    function = lambda x: x + base  # noqa: E731
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(function)
    wrapped = PicklableWrapper(PicklableWrapper(function))
    again = pickle.loads(pickle.dumps(wrapped))
    assert wrapped(1) == again(1) == 4
    assert again.__name__ == "<lambda>"


@pytest.mark.parametrize("target", [len, dict, torch.optim.SGD, Registry, Registry.get])
def test_shortest_name(target):
    assert locate(_convert_target_to_string(target)) is target


def test_name_of_an_object_that_its_package_exports():
    from detectron2.data.transforms import RandomCrop

    assert _convert_target_to_string(RandomCrop) == "detectron2.data.transforms.RandomCrop"
