"""Send functions to other processes that pickle does not support."""

import importlib.util
from typing import Any

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wrap any object; cloudpickle, if installed, pickles it, which supports lambdas and closures.

    Calls and attributes are those of the object.
    """

    def __init__(self, obj: Any) -> None:
        """Wrap ``obj``; if it is a wrapper, its object."""
        self._obj: Any = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self) -> tuple[Any, ...]:
        if importlib.util.find_spec("cloudpickle") is None:
            return PicklableWrapper, (self._obj,)
        import cloudpickle

        return _load, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object."""
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # missing while a copy is being made
            raise AttributeError(name)
        return getattr(self._obj, name)


def _load(pickled: bytes) -> PicklableWrapper:
    import cloudpickle

    return PicklableWrapper(cloudpickle.loads(pickled))
