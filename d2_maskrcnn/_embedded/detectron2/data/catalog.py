"""Process-wide tables of datasets: how to read them, and their metadata.

``DatasetCatalog`` maps a name to a function that returns the dataset's records; ``MetadataCatalog`` maps the same name
to a :class:`Metadata`, the attributes that all records share (class names, the annotation file, ...).
"""

from __future__ import annotations

import difflib
import reprlib
from collections import UserDict
from collections.abc import Callable
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


def _nearest_first(name: str, known: list[str]) -> list[str]:
    """Sort ``known`` by similarity to ``name``, the most similar first."""
    return sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())


class _DatasetCatalog(UserDict):
    """Maps a dataset name to a function without arguments that returns a list of records (or a PyTorch dataset)."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Register ``func`` as the reader of ``name``. It is called whenever the dataset is read.

        Args:
            name: the name that configs use, such as ``"coco_2017_train"``.
            func: takes no arguments; each call must return the same records in the same order.

        Raises:
            TypeError: ``func`` is not callable.
            ValueError: the name is registered already.
        """
        if not callable(func):
            raise TypeError(
                f"dataset {name!r}: expected a function that returns the records, got {type(func).__name__}."
            )
        if name in self:
            raise ValueError(f"dataset {name!r} is already registered; remove it first or choose another name.")
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]
        """Call the function registered under ``name`` and return its records.

        Raises:
            KeyError: the name is not registered; the message lists the registered ones, the most similar first.
        """
        if name not in self:
            known = ", ".join(_nearest_first(str(name), list(self))) or "none"
            raise KeyError(f"dataset {name!r} is not registered. Registered datasets, most similar first: {known}.")
        return self[name]()

    def list(self) -> list[str]:
        """Return the registered names, in order of registration."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Remove ``name``.

        Raises:
            KeyError: the name is not registered.
        """
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


class Metadata:
    """Attributes that all records of a dataset share.

    An attribute keeps its first value: setting it again to an equal value is allowed, to another value is an error,
    because code that has read the old value would be inconsistent with code that reads the new one.

    >>> meta = Metadata(name="my_data", thing_classes=["cat", "dog"])
    >>> meta.thing_classes
    ['cat', 'dog']
    """

    name: str = "N/A"

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, key: str) -> Any:
        # Called for missing names only. Protocol probes (pickle, copy) expect a bare AttributeError.
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
        """Set several attributes and return the metadata, so that calls can be chained.

        Raises:
            ValueError: an attribute has another value already.
        """
        for key, value in attributes.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or ``default`` if it is not set."""
        return self.__dict__.get(key, default)

    def as_dict(self) -> dict[str, Any]:
        """Return a copy of all attributes."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Metadata({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"


class _MetadataCatalog(UserDict):
    """Maps a dataset name to its :class:`Metadata`, which is created at the first access."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """Return the metadata of ``name``: always the same object, which has only its name at first.

        Raises:
            ValueError: the name is empty.
        """
        if not name:
            raise ValueError("the name of a dataset must not be empty.")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Return the names that have metadata."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Remove the metadata of ``name``.

        Raises:
            KeyError: there is none.
        """
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
