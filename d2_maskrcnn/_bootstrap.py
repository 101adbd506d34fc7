"""Choose which ``detectron2`` this process uses: the installed one, or the embedded engine.

The rules, in order:

1. A ``detectron2`` that is already imported is kept: two engines in one process would register everything twice.
2. ``D2_MASKRCNN_ENGINE=installed`` or ``=embedded`` decides.
3. An installed Detectron2 is used. Its import errors are shown; there is no fallback that would hide them.
4. Otherwise the embedded engine's folder is appended to ``sys.path``, so that modules have the same names with both
   engines, and worker processes, which inherit ``sys.path``, import the same one.

Nothing heavy is imported: the model's components register themselves as soon as ``detectron2.modeling``, whose
registries contain them, is imported.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from d2_maskrcnn.errors import UserError

ENGINE_VARIABLE = "D2_MASKRCNN_ENGINE"
EMBEDDED_ROOT = Path(__file__).resolve().parent / "_embedded"
_CHOICES = ("auto", "installed", "embedded")


@dataclass(frozen=True)
class EngineInfo:
    """Name, version and location of the ``detectron2`` in use.

    Attributes:
        name: ``"installed"`` or ``"embedded"``.
        version: its ``__version__``.
        path: the folder of the package.
    """

    name: str
    version: str
    path: str

    def as_dict(self) -> dict[str, str]:
        """Return the three values as a dict, as checkpoints store them."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} detectron2 {self.version} at {self.path}"


def _find_installed() -> ModuleSpec | None:
    """Return the module spec of an installed Detectron2, or None.

    Not installed are a plain ``detectron2/`` folder in the working directory, whose namespace spec has no origin, and
    the embedded engine, whose folder is already on ``sys.path`` in worker processes.
    """
    search_path = [entry for entry in sys.path if Path(entry or ".").resolve() != EMBEDDED_ROOT]
    spec = importlib.machinery.PathFinder.find_spec("detectron2", search_path)
    if spec is None:  # editable installs have an import finder of their own instead of a path entry
        spec = _find_with_other_finders()
    return spec if spec is not None and spec.origin is not None else None


def _find_with_other_finders() -> ModuleSpec | None:
    for finder in sys.meta_path:
        if finder is importlib.machinery.PathFinder or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec("detectron2", None)
        if spec is not None:
            return spec
    return None


def _forced_choice() -> str:
    choice = os.environ.get(ENGINE_VARIABLE, "auto").strip().lower() or "auto"
    if choice not in _CHOICES:
        raise UserError(f"{ENGINE_VARIABLE}={choice!r} is not an engine; expected one of {', '.join(_CHOICES)}.")
    return choice


def _check_already_imported(choice: str) -> None:
    origin = Path(str(sys.modules["detectron2"].__file__)).resolve()
    actual = "embedded" if EMBEDDED_ROOT in origin.parents else "installed"
    if choice not in ("auto", actual):
        raise UserError(
            f"{ENGINE_VARIABLE}={choice}, but the {actual} detectron2 at {origin.parent} is already imported: "
            "put `import d2_maskrcnn` before any `import detectron2`."
        )


def choose_engine() -> None:
    """Make ``import detectron2`` import the chosen engine. Further calls change nothing.

    Raises:
        UserError: ``D2_MASKRCNN_ENGINE`` is not an engine, contradicts the ``detectron2`` that is already imported, or
            is ``installed`` although no Detectron2 is installed.
    """
    choice = _forced_choice()
    if "detectron2" in sys.modules and getattr(sys.modules["detectron2"], "__file__", None):
        _check_already_imported(choice)
        _register_components()
        return
    installed = _find_installed()
    if choice == "installed" and installed is None:
        raise UserError(
            f"{ENGINE_VARIABLE}=installed, but no Detectron2 is installed for {sys.executable}: install it "
            "(https://detectron2.readthedocs.io/tutorials/install.html) or unset the variable to use the embedded "
            "engine."
        )
    root = str(EMBEDDED_ROOT)
    if choice == "embedded":
        # In front, since an installed one may exist.
        sys.path[:] = [root] + [entry for entry in sys.path if entry != root]
        sys.modules.pop("detectron2", None)  # an empty namespace package, if anything
    elif installed is None and root not in sys.path:
        sys.path.append(root)
    importlib.invalidate_caches()
    _register_components()


def _register_components() -> None:
    """Register the model's components now if ``detectron2.modeling`` is imported, else when it is."""
    if not any(isinstance(finder, _ImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ImportHook())
    if "detectron2.modeling" in sys.modules:
        importlib.import_module("d2_maskrcnn.modeling")


class _ImportHook(MetaPathFinder):
    """Import ``d2_maskrcnn.modeling`` after ``detectron2.modeling``, and ``fvcore.nn`` without its warnings.

    At import fvcore scripts a few losses, for which PyTorch 2.15 warns of a deprecated function; users of this package
    cannot change that.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders return, with a loader that does the above."""
        if fullname not in ("detectron2.modeling", "fvcore.nn"):
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = partial(_execute, spec.loader.exec_module)  # type: ignore[method-assign]
                return spec
        return None


def _execute(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        run(module)
    if module.__name__ == "detectron2.modeling":
        importlib.import_module("d2_maskrcnn.modeling")


def engine_info() -> EngineInfo:
    """Return the name, version and path of the ``detectron2`` in use.

    >>> import d2_maskrcnn
    >>> d2_maskrcnn.engine_info().name in ("installed", "embedded")
    True
    """
    detectron2 = importlib.import_module("detectron2")
    path = Path(str(detectron2.__file__)).resolve().parent
    name = "embedded" if EMBEDDED_ROOT in path.parents else "installed"
    return EngineInfo(name=name, version=str(getattr(detectron2, "__version__", "unknown")), path=str(path))
