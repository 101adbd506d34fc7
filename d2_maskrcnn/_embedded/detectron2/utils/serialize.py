"""Sending functions to other processes that pickle itself cannot send."""

import importlib.util
from typing import Any

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Holds any object; it is pickled by cloudpickle (where that is installed), which takes lambdas and closures too.

    Calls and attributes go to the object.
    """

    def __init__(self, obj: Any) -> None:
        """Holds ``obj``; another wrapper's object is taken out of it first."""
        self._obj: Any = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self) -> tuple[Any, ...]:
        if importlib.util.find_spec("cloudpickle") is None:
            return PicklableWrapper, (self._obj,)
        import cloudpickle

        return _load, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the object."""
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self._obj, name)


def _load(pickled: bytes) -> PicklableWrapper:
    import cloudpickle

    return PicklableWrapper(cloudpickle.loads(pickled))
