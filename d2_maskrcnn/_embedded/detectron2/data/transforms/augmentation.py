"""Augmentations: policies that choose a deterministic transform for an input and apply it."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

from detectron2._errors import InvalidArgumentError

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "apply_augmentations",
    "apply_transform_gens",
]


def check_image(image: Any) -> None:
    """Check that ``image`` is an array of shape (H, W) or (H, W, C), uint8 in [0, 255] or floating point.

    Raises:
        TypeError: it is not a NumPy array, or has integers other than uint8.
        ValueError: it has another number of dimensions.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image must be a NumPy array, got {type(image).__name__}.")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"an image must be uint8 or floating point, got {image.dtype}.")
    if image.ndim not in (2, 3):
        raise InvalidArgumentError(f"an image must have shape (H, W) or (H, W, C), got {image.shape}.")


class Augmentation:
    """Base class of augmentations; subclasses define :meth:`get_transform`.

    The parameter names of ``get_transform`` are attributes of the input that it reads, such as ``image``, ``boxes`` or
    ``sem_seg``.
    """

    def _init(self, params: dict[str, Any]) -> None:
        """Store the constructor's arguments (``locals()``) as attributes of the same names."""
        for name, value in params.items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Choose the transform for an input."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform.")

    def __call__(self, aug_input: Any) -> Transform:
        """Choose a transform, apply it to ``aug_input`` in place, and return it for other data of the same image.

        Raises:
            AttributeError: ``get_transform`` has a parameter that is not an attribute of the input.
        """
        transform = self.get_transform(*_wanted_attributes(self, aug_input))
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Return uniform numbers in [low, high), or in [0, low) without ``high``."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, size if size is not None else [])

    def __repr__(self) -> str:
        shown = []
        for name, parameter in inspect.signature(self.__init__).parameters.items():  # type: ignore[misc]
            value = getattr(self, name, parameter.default)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={text if len(text.splitlines()) <= 1 else '...'}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


def _wanted_attributes(augmentation: Augmentation, aug_input: Any) -> list[Any]:
    """Return the attributes of ``aug_input`` that are parameters of ``augmentation.get_transform``."""
    values = []
    for name, parameter in inspect.signature(augmentation.get_transform).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{type(augmentation).__name__}.get_transform must name its parameters, not use * or **.")
        if not hasattr(aug_input, name):
            raise AttributeError(
                f"{type(augmentation).__name__}.get_transform needs {name!r}, which the input "
                f"({type(aug_input).__name__}) lacks."
            )
        values.append(getattr(aug_input, name))
    return values


class _FixedAugmentation(Augmentation):
    """Always the same transform."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def as_augmentation(item: Augmentation | Transform | Sequence[Any]) -> Augmentation:
    """Convert a transform, which is then always applied, or a sequence to an augmentation; return an augmentation
    unchanged.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(item, Augmentation):
        return item
    if isinstance(item, Transform):
        return _FixedAugmentation(item)
    if isinstance(item, list | tuple):
        return AugmentationList(item)
    raise TypeError(f"expected an Augmentation, a Transform or a list of them, got {type(item).__name__}.")


class AugmentationList(Augmentation):
    """Apply augmentations one after the other; each one reads the result of those before it."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [as_augmentation(item) for item in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        """Apply all to ``aug_input`` in place and return the chosen transforms."""
        return TransformList([augmentation(aug_input) for augmentation in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """An image, and other data that the same transforms are applied to.

    Attributes:
        image: (H, W) or (H, W, C) array, uint8 in [0, 255] or floating point in [0, 1] or [0, 255].
        boxes: (N, 4) floating-point XYXY in pixels of ``image``, or None.
        sem_seg: (H, W) integer labels, or None.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply ``tfm`` to all attributes, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Apply augmentations one after the other, in place, and return the chosen transforms."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Apply augmentations to an input or to an image.

    Returns:
        the augmented input, or the image if an image was given, and the chosen transforms.
    """
    if isinstance(inputs, np.ndarray):
        image_input = AugInput(inputs)
        transforms = image_input.apply_augmentations(augmentations)
        return image_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Older names.
apply_transform_gens = apply_augmentations
StandardAugInput = AugInput
TransformGen = Augmentation
_transform_to_aug = as_augmentation
