"""What an augmentation is: a policy that looks at an input, draws a deterministic transform and applies it."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "apply_augmentations",
    "apply_transform_gens",
]


def check_image(image: Any) -> None:
    """Checks that ``image`` is an array of shape (H, W) or (H, W, C), uint8 in [0, 255] or floating point.

    Raises:
        TypeError: it is no NumPy array, or holds integers other than uint8.
        ValueError: it has another number of dimensions.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image must be a NumPy array, got {type(image).__name__}.")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"an image must be uint8 or floating point, got {image.dtype}.")
    if image.ndim not in (2, 3):
        raise ValueError(f"an image must have shape (H, W) or (H, W, C), got {image.shape}.")


class Augmentation:
    """Base class: subclasses write :meth:`get_transform`.

    The names of ``get_transform``'s parameters say what it looks at: each is an attribute of the input, such as
    ``image``, ``boxes`` or ``sem_seg``.
    """

    def _init(self, params: dict[str, Any]) -> None:
        """Keeps the constructor's arguments (``locals()``) as attributes of the same names."""
        for name, value in params.items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Draws the transform for one input."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform.")

    def __call__(self, aug_input: Any) -> Transform:
        """Draws a transform, applies it to ``aug_input`` in place and returns it, for what else must undergo it.

        Raises:
            AttributeError: ``get_transform`` asks for something that the input does not have.
        """
        transform = self.get_transform(*_wanted_attributes(self, aug_input))
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform in [low, high), or in [0, low) where only one number is given."""
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
    """The attributes of ``aug_input`` that ``augmentation.get_transform`` names as its parameters."""
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
    """A given transform, each time."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def as_augmentation(item: Augmentation | Transform | Sequence[Any]) -> Augmentation:
    """``item`` as an augmentation: itself, a transform that is always applied, or a sequence of both.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(item, Augmentation):
        return item
    if isinstance(item, Transform):
        return _FixedAugmentation(item)
    if isinstance(item, list | tuple):
        return AugmentationList(item)
    raise TypeError(f"expected an Augmentation, a Transform or a list of them, got {type(item).__name__}.")


class AugmentationList(Augmentation):
    """Several augmentations, one after the other; each one sees what those before it have made of the input."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [as_augmentation(item) for item in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        """Applies all to ``aug_input`` in place and returns the transforms that were drawn."""
        return TransformList([augmentation(aug_input) for augmentation in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """An image and what must undergo the same transforms.

    Attributes:
        image: (H, W) or (H, W, C) array, uint8 in [0, 255] or floating point in [0, 1] or [0, 255].
        boxes: (N, 4) floating-point XYXY in absolute coordinates of ``image``, or None.
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
        """Applies ``tfm`` to all attributes, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Applies the augmentations in turn, in place, and returns the transforms that were drawn."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Applies augmentations to an input or to a bare image.

    Returns:
        the augmented input (an image where an image was given) and the transforms that were drawn.
    """
    if isinstance(inputs, np.ndarray):
        image_input = AugInput(inputs)
        transforms = image_input.apply_augmentations(augmentations)
        return image_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


apply_transform_gens = apply_augmentations  # the older name
