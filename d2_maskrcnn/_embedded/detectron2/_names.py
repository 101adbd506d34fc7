"""Names of Detectron2 that this engine does not define itself, so that programs can import them all the same.

A plugin provides some of them (the parts of the model). The others, listed in ``missing.yaml``, become placeholders
whose first use raises one clear error. Modules that exist here look names up through :func:`lookup`; a finder at the
end of ``sys.meta_path`` makes those that do not.
"""

import functools
import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from detectron2._errors import NotInEngineError, not_in_engine

__all__ = ["NotInEngineError", "lookup", "not_in_engine", "provide"]

_provided: dict[str, Any] = {}
# Programs also import the names of these packages from the modules of Detectron2 that import them.
_SHARED = tuple(
    f"detectron2.{name}"
    for name in (
        *("structures", "layers", "config", "data", "data.samplers", "data.transforms", "data.detection_utils"),
        *("evaluation", "solver", "modeling", "engine"),
        *("utils.events", "utils.comm", "utils.logger", "utils.env", "utils.memory"),
    )
)


def provide(**objects: Any) -> None:
    """Let every module below ``detectron2.modeling`` give out ``objects`` by name."""
    _provided.update(objects)


def lookup(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module: a plugin's names, placeholders of missing ones, then shared names."""

    def find(name: str) -> Any:
        if not name.startswith("__"):
            if module.startswith("detectron2.modeling") and name in _provided:
                return _provided[name]
            names, trees = _missing()
            part = names.get(module, {}).get(name) or _part_of_tree(module, trees)
            if part is not None:
                return _placeholder(f"{module}.{name}", part)
            for shared in () if module in _SHARED else filter(None, map(sys.modules.get, _SHARED)):
                if name in getattr(shared, "__all__", ()) and name in vars(shared):
                    return vars(shared)[name]
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


class _MissingModule(ModuleType):
    """A module that exists in ``missing.yaml`` only: it has the placeholders listed there and its package's names."""

    def __getattr__(self, name: str) -> Any:
        try:
            return lookup(self.__name__)(name)
        except AttributeError:
            parent = importlib.import_module(self.__name__.rpartition(".")[0])
            if name.startswith("__") or not hasattr(parent, name):
                raise
            return getattr(parent, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Some functions have the name of their module, which hides them in the package once it is imported.
        raise not_in_engine(self.__name__, "such function")


class _Placeholder(type):
    """The type of stand-ins for missing classes and functions: importable, also as base classes, but of no use."""

    _part: str
    _name: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise not_in_engine(cls._name, cls._part)

    def __getattr__(cls, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise not_in_engine(f"{cls._name}.{attribute}", cls._part)


@functools.cache
def _placeholder(name: str, part: str) -> _Placeholder:
    module, _, short = name.rpartition(".")
    return _Placeholder(short, (), {"__module__": module, "_name": name, "_part": part})


@functools.cache
def _missing() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return {module: {name: part}} for single names, and {package: part} for packages that are missing as a whole."""
    names: dict[str, dict[str, str]] = {}
    trees: dict[str, str] = {}
    for part, modules in yaml.safe_load((Path(__file__).parent / "missing.yaml").read_text()).items():
        for module, listed in modules.items():
            module = f"detectron2.{module}"
            if listed == "*":
                trees[module] = part
            else:
                names.setdefault(module, {}).update(dict.fromkeys(listed.split(), part))
    return names, trees


def _part_of_tree(module: str, trees: dict[str, str]) -> str | None:
    return next((part for package, part in trees.items() if f"{module}.".startswith(f"{package}.")), None)


class _Finder:
    """Make the modules of Detectron2 that exist only in ``missing.yaml``."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("detectron2."):
            return None
        names, trees = _missing()
        known = fullname in names or any(module.startswith(f"{fullname}.") for module in (*names, *trees))
        if not known and _part_of_tree(fullname, trees) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Finder, is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _MissingModule(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        pass


def install() -> None:
    """Add the finder, once, behind all others: a module that exists is never replaced."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
