"""Construction of classes and functions from a config: ``@configurable``."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from fvcore.common.config import CfgNode as _CfgNode

F = TypeVar("F", bound=Callable[..., Any])


def configurable(init_func: Any = None, *, from_config: Callable[..., dict[str, Any]] | None = None) -> Any:
    """Decorate ``__init__`` of a class that has a classmethod ``from_config``, or a function.

    ``from_config(cfg, ...)`` converts a config to keyword arguments, so that the class itself does not depend on
    ``cfg``. The decorated callable is called either with a config (first, or as ``cfg=``) or with its own arguments. In
    a call with a config, further arguments that are parameters of ``from_config`` are passed to it; all others override
    its result.

    Examples:
        >>> class Head:
        ...     @configurable
        ...     def __init__(self, *, channels: int, depth: int = 1) -> None:
        ...         self.channels, self.depth = channels, depth
        ...     @classmethod
        ...     def from_config(cls, cfg):
        ...         return {"channels": cfg.CHANNELS}
        >>> from detectron2.config import CfgNode
        >>> Head(CfgNode({"CHANNELS": 8}), depth=2).channels
        8

        >>> @configurable(from_config=lambda cfg: {"size": cfg.SIZE})
        ... def build(size: int) -> int:
        ...     return size

    Raises:
        TypeError: ``from_config`` is missing for a function or given for a class, or does not take ``cfg`` first.
        AttributeError: (when called) the class has no ``from_config``.
    """
    if init_func is None:
        if from_config is None:
            raise TypeError("@configurable(...) on a function needs from_config=")
        return _configurable_function(from_config)
    if from_config is not None or not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
        raise TypeError(
            f"@configurable without arguments decorates __init__ only, got {init_func!r}; "
            "a function takes @configurable(from_config=...)"
        )
    return _configurable_init(init_func)


def _configurable_init(init_func: F) -> F:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        from_config = getattr(type(self), "from_config", None)
        if from_config is None:
            raise AttributeError(f"{type(self).__name__} has a @configurable __init__ but no classmethod `from_config`")
        if not inspect.ismethod(from_config):
            raise TypeError(f"{type(self).__name__}.from_config must be a classmethod, got {from_config!r}")
        if _called_with_cfg(*args, **kwargs):
            init_func(self, **_explicit_arguments(from_config, *args, **kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _configurable_function(from_config: Callable[..., dict[str, Any]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if _called_with_cfg(*args, **kwargs):
                return function(**_explicit_arguments(from_config, *args, **kwargs))
            return function(*args, **kwargs)

        wrapped.from_config = from_config  # type: ignore[attr-defined]
        return wrapped  # type: ignore[return-value]

    return decorate


def _called_with_cfg(*args: Any, **kwargs: Any) -> bool:
    cfg = args[0] if args else kwargs.get("cfg")
    omegaconf = sys.modules.get("omegaconf")  # an optional package, whose configs serve as well
    return isinstance(cfg, _CfgNode) or (omegaconf is not None and isinstance(cfg, omegaconf.DictConfig))


def _explicit_arguments(from_config: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the keyword arguments from ``from_config`` and the caller; the caller's have precedence."""
    parameters = list(inspect.signature(from_config).parameters.values())
    if not parameters or parameters[0].name != "cfg":
        name = getattr(from_config, "__qualname__", repr(from_config))
        raise TypeError(f"{name} must take `cfg` as its first argument, got {[p.name for p in parameters]}")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return from_config(*args, **kwargs)
    names = {p.name for p in parameters}
    overrides = {name: kwargs.pop(name) for name in list(kwargs) if name not in names}
    return {**from_config(*args, **kwargs), **overrides}
