"""The instances of an image: named fields of equal length."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from detectron2._errors import InvalidArgumentError


class Instances:
    """N instances of an image, with any number of fields (boxes, classes, scores, masks, ...).

    Fields are set and read like attributes. A field is anything with a length and an index: a tensor, :class:`Boxes`,
    :class:`BitMasks`, :class:`PolygonMasks`, a list. Names that start with an underscore are plain attributes.

    Examples:
        >>> detections = Instances((480, 640), scores=torch.tensor([0.9, 0.2]), names=["cat", "dog"])
        >>> detections.pred_classes = torch.tensor([3, 7])
        >>> len(detections), detections[detections.scores > 0.5].names
        (2, ['cat'])
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Create instances; ``image_size`` is (height, width) in pixels, keyword arguments are fields."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # Called for names that are not attributes; while an object is unpickled, `_fields` itself is one of them.
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"These Instances have no field {name!r}")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            AttributeError: the class has a property of this name.
            ValueError: ``value`` has another length than the other fields.
        """
        if isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{name!r} is a property of Instances and cannot be a field")
        others = [other for other in self._fields if other != name]
        if others and len(value) != len(self._fields[others[0]]):
            raise InvalidArgumentError(
                f"Field {name!r} has {len(value)} entries, but these Instances have {len(self._fields[others[0]])}"
            )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Return whether there is a field of this name."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field; KeyError if there is none of this name."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """Return the field of this name; KeyError if there is none."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return the dict of all fields; changes to it change the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Return new instances, every field that has a ``to`` method being moved by it."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: int | slice | torch.Tensor | Any) -> "Instances":
        """Return new instances with the selected entries of every field; an integer selects one instance.

        Raises:
            IndexError: an index is out of range.
        """
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"index {item} is out of range for {len(self)} instances")
            item = slice(item, None if item == -1 else item + 1)
        picked = Instances(self._image_size)
        for name, value in self._fields.items():
            picked.set(name, _pick(value, item))
        return picked

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length")

    def __iter__(self) -> Iterator["Instances"]:
        raise NotImplementedError("Instances cannot be iterated: use `for i in range(len(instances))`")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """Concatenate instances of the same image size and with the same fields.

        Raises:
            ValueError: the list is empty, image sizes or field names differ, or the type of a field cannot be
                concatenated.
        """
        if len(instance_lists) == 0:
            raise InvalidArgumentError("Instances.cat needs at least one Instances")
        first = instance_lists[0]
        for other in instance_lists[1:]:
            if other.image_size != first.image_size:
                raise InvalidArgumentError(
                    f"Instances.cat of images of different sizes: {first.image_size} and {other.image_size}"
                )
            if other.get_fields().keys() != first.get_fields().keys():
                raise InvalidArgumentError(
                    f"Instances.cat of different fields: {sorted(first._fields)} and {sorted(other._fields)}"
                )
        joined = Instances(first.image_size)
        for name in first.get_fields():
            joined.set(name, _join([instances.get(name) for instances in instance_lists]))
        return joined

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        height, width = self._image_size
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"


def _pick(value: Any, item: Any) -> Any:
    if not isinstance(value, (list, tuple)) or isinstance(item, slice):
        return value[item]
    index = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)
    if index.dtype == bool:
        index = np.flatnonzero(index)
    return type(value)(value[i] for i in index.reshape(-1).astype(int))


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(first, np.ndarray):
        return np.concatenate(values, axis=0)
    if isinstance(first, (list, tuple)):
        return type(first)(itertools.chain(*values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise InvalidArgumentError(f"Instances.cat cannot concatenate fields of type {type(first).__name__}")
