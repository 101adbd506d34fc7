"""Choose which ``detectron2`` this process uses: the installed one, or the embedded engine.

The rules, in order:

1. A ``detectron2`` that is already imported is kept: two engines in one process would register everything twice.
2. ``D2_MASKRCNN_ENGINE=installed`` or ``=embedded`` decides.
3. An installed Detectron2 is used. Its import errors are shown; there is no fallback that would hide them.
4. Otherwise the embedded engine's folder is appended to ``sys.path``, so that modules have the same names with both
   engines, and worker processes, which inherit ``sys.path``, import the same one.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

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


def _find_installed() -> importlib.machinery.ModuleSpec | None:
    """Return the module spec of an installed Detectron2, or None.

    Not installed are a plain ``detectron2/`` folder in the working directory, whose namespace spec has no origin, and
    the embedded engine, whose folder is already on ``sys.path`` in worker processes.
    """
    search_path = [entry for entry in sys.path if Path(entry or ".").resolve() != EMBEDDED_ROOT]
    spec = importlib.machinery.PathFinder.find_spec("detectron2", search_path)
    if spec is None:  # editable installs have an import finder of their own instead of a path entry
        spec = _find_with_other_finders()
    return spec if spec is not None and spec.origin is not None else None


def _find_with_other_finders() -> importlib.machinery.ModuleSpec | None:
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
    _import_fvcore_quietly()


def _import_fvcore_quietly() -> None:
    # At import fvcore scripts a few losses, for which PyTorch 2.15 warns of a deprecated function; users of this
    # package cannot change that.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        importlib.import_module("fvcore.nn")


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
