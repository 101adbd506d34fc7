"""Two tables that are shared by the whole process: how to load a dataset, and what is known about it.

``DatasetCatalog`` maps a name to a function that returns the dataset's records; ``MetadataCatalog`` maps the same name
to a :class:`Metadata`, an attribute bag for what all records have in common (class names, the annotation file, ...).
"""

from __future__ import annotations

import difflib
import reprlib
from collections import UserDict
from collections.abc import Callable
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


def _nearest_first(name: str, known: list[str]) -> list[str]:
    """``known`` sorted by likeness to ``name``, the likest first."""
    return sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())


class _DatasetCatalog(UserDict):
    """Dataset name -> function without arguments that returns a list of records (or a torch dataset)."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Makes ``func`` the loader of ``name``. It is called each time the dataset is asked for.

        Args:
            name: the name that configs use, such as ``"coco_2017_train"``.
            func: takes no arguments; each call must give the same records in the same order.

        Raises:
            TypeError: ``func`` cannot be called.
            ValueError: the name is taken.
        """
        if not callable(func):
            raise TypeError(
                f"dataset {name!r}: expected a function that returns the records, got {type(func).__name__}."
            )
        if name in self:
            raise ValueError(f"dataset {name!r} is already registered; remove it first or choose another name.")
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]
        """Calls the function registered under ``name`` and returns its records.

        Raises:
            KeyError: nothing is registered under ``name``; the message lists what is, the most similar name first.
        """
        if name not in self:
            known = ", ".join(_nearest_first(str(name), list(self))) or "none"
            raise KeyError(f"dataset {name!r} is not registered. Registered datasets, nearest first: {known}.")
        return self[name]()

    def list(self) -> list[str]:
        """The registered names, in order of registration."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Forgets ``name``.

        Raises:
            KeyError: nothing is registered under ``name``.
        """
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


class Metadata:
    """Attributes of one dataset that all of its records share.

    An attribute that has been set keeps its value: setting it again to the same value is allowed, to another one is an
    error, because parts of the program that read it earlier would disagree with those that read it later.

    >>> meta = Metadata(name="my_data", thing_classes=["cat", "dog"])
    >>> meta.thing_classes
    ['cat', 'dog']
    """

    name: str = "N/A"

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, key: str) -> Any:
        # Called only when normal look-up found nothing. Protocol probes (pickle, copy) must see a bare AttributeError.
        if key.startswith("__"):
            raise AttributeError(key)
        known = ", ".join(self.__dict__) or "nothing"
        raise AttributeError(f"metadata of dataset {self.name!r} has no attribute {key!r}. It has: {known}.")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise ValueError(
                f"metadata of dataset {self.name!r}: {key!r} is already {reprlib.repr(self.__dict__[key])} and cannot "
                f"become {reprlib.repr(value)}; use another dataset name, or delete the attribute first."
            )
        self.__dict__[key] = value

    def set(self, **attributes: Any) -> Metadata:
        """Sets several attributes and returns itself, so that calls can be chained.

        Raises:
            ValueError: one of them has another value already.
        """
        for key, value in attributes.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or ``default`` where there is none."""
        return self.__dict__.get(key, default)

    def as_dict(self) -> dict[str, Any]:
        """All attributes; changing the dict does not change the metadata."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Metadata({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"


class _MetadataCatalog(UserDict):
    """Dataset name -> :class:`Metadata`, made when first asked for."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of ``name``: the same object for the same name, empty but for its name when new.

        Raises:
            ValueError: the name is empty.
        """
        if not name:
            raise ValueError("a dataset's name must not be empty.")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """The names that have metadata."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Forgets the metadata of ``name``.

        Raises:
            KeyError: there is none.
        """
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
