"""Tables of objects by name, which plugins extend, and look-up of an object by its dotted name."""

import difflib
import importlib
from typing import Any

from fvcore.common.registry import Registry as _Registry

__all__ = ["Registry", "locate"]


class Registry(_Registry):
    """fvcore's registry, with an error for unknown names that lists the known ones."""

    def get(self, name: str) -> Any:
        """Return the object registered under ``name``.

        Raises:
            KeyError: there is none; the message has the registry, the name, and the known names.
        """
        if name in self:
            return super().get(name)
        known = sorted(key for key, _ in self)
        nearest = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        listing = ", ".join(known) or "none"
        raise KeyError(f"No object named {name!r} found in {self._name!r} registry!{hint} Registered: {listing}.")


def locate(name: str) -> Any:
    """Return the module, class, function or attribute of a dotted name such as ``"torch.nn.Linear"``.

    Raises:
        ImportError: there is no such object.
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module_name = ".".join(parts[:count])
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name + ".").startswith(error.name + "."):
                raise  # the module exists, but something that it imports does not
            continue
        return _follow(found, parts[count:], name)
    raise ImportError(f"Cannot locate {name!r}: there is no module {parts[0]!r}")


def _convert_target_to_string(target: Any) -> str:
    """Return the shortest dotted name from which :func:`locate` returns ``target``, a class or function."""
    parts = target.__module__.split(".")
    for count in range(1, len(parts)):
        name = ".".join([*parts[:count], target.__qualname__])
        try:
            if locate(name) is target:
                return name
        except ImportError:
            continue
    return f"{target.__module__}.{target.__qualname__}"


def _follow(found: Any, attributes: list[str], name: str) -> Any:
    for attribute in attributes:
        if not hasattr(found, attribute):
            raise ImportError(f"Cannot locate {name!r}: {found!r} has no {attribute!r}")
        found = getattr(found, attribute)
    return found
