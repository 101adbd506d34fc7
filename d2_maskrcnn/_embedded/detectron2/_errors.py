"""Exceptions of this engine."""

__all__ = ["InvalidArgumentError", "NotInEngineError", "not_in_engine"]


class InvalidArgumentError(ValueError, AssertionError):
    """Raised for an invalid argument; an AssertionError as well, since programs may expect Detectron2's assertions."""


class NotInEngineError(RuntimeError):
    """Raised when a program uses a part of Detectron2 that this engine does not have."""


def not_in_engine(name: str, part: str) -> NotInEngineError:
    """Return the error for ``name``, which belongs to the missing ``part``, such as "rotated boxes"."""
    return NotInEngineError(
        f"{name}: the embedded engine of d2_maskrcnn has no {part}; install Detectron2 to use it "
        "(https://detectron2.readthedocs.io/tutorials/install.html)"
    )
