"""What the unpickler of weight files gets in place of the names that pickled numpy arrays import.

They only take note of types, shapes and bytes, which are checked against each other; the arrays are made afterwards.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

_ARRAY_KINDS = "biufc"  # bool, signed, unsigned, float, complex: no objects, no records


class Refused(Exception):
    """The file asks for something that weights don't need; the text says what."""


class Budget:
    """The memory that a file may ask for: pickles can name the same bytes many times and copy them each time.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        """Uses up ``size`` bytes.

        Raises:
            Refused: there are no more.
        """
        self._left -= size
        if self._left < 0:
            raise Refused("asks for more memory than its size explains")


class StandIn:
    """What the unpickler gets in place of an imported name.

    It is no class, has no ``__dict__`` and cannot be changed, so the opcodes that build objects or set attributes
    cannot use it.
    """

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        """What the file gets for its call."""
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("changes an admitted function")


class OrderedStandIn(dict):
    """Stands for ``collections.OrderedDict``; attributes (torch puts its ``_metadata`` there) are not kept."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Leaves the attributes out."""


class DTypeStandIn:
    """Stands for ``numpy.dtype`` until its byte order has come with the state."""

    __slots__ = ("value",)

    def __init__(self, text: Any) -> None:
        if not isinstance(text, str) or len(text) > 8:
            raise Refused(f"makes arrays of type {text!r:.60}")
        try:
            self.value = np.dtype(text)
        except TypeError:
            raise Refused(f"makes arrays of type {text!r}") from None
        # Wider floats than 64 bits are the platform's own, and torch has none.
        if self.value.kind not in _ARRAY_KINDS or self.value.itemsize > (16 if self.value.kind == "c" else 8):
            raise Refused(f"makes arrays of type {text!r} ({self.value.name})")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, subtype, names, fields = state[1:5]
        if order not in ("<", ">", "|", "="):
            raise Refused(f"makes arrays of byte order {order!r:.60}")
        if subtype is not None or names is not None or fields is not None:
            raise Refused("makes arrays of records")
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class ArrayStandIn:
    """Stands for a ``numpy.ndarray``: type, shape and bytes, checked against each other before any memory is taken."""

    __slots__ = ("_array", "_budget", "_dtype", "_order", "_raw", "_shape")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._raw: bytes | bytearray | None = None
        self._array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state if len(state) == 5 else (0, *state)  # numpy's oldest have no version
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        """Takes note of the contents; ``raw`` must hold exactly what ``shape`` and ``dtype`` need."""
        if not isinstance(dtype, DTypeStandIn):
            raise Refused("makes arrays without a numeric type")
        if isinstance(raw, str):  # Python 2 wrote bytes as str
            self._budget.take(len(raw))
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes | bytearray):
            raise Refused(f"fills arrays from {type(raw).__name__}")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused(f"makes arrays of shape {shape!r:.60}")
        if math.prod(shape) * dtype.value.itemsize != len(raw):
            raise Refused(f"makes an array of shape {shape!r:.60} from {len(raw)} bytes")
        if order not in ("C", "F"):
            raise Refused(f"makes arrays of memory order {order!r:.60}")
        self._raw, self._dtype, self._shape, self._order = raw, dtype.value, shape, order

    def make(self) -> np.ndarray:
        """The array: own memory, C order, the machine's byte order. The same one each time."""
        if self._array is None:
            if self._raw is None:
                raise Refused("holds an array without contents")
            self._budget.take(len(self._raw))
            flat = np.frombuffer(self._raw, self._dtype)
            shaped = flat.reshape(self._shape, order=self._order)
            self._array = np.array(shaped, dtype=self._dtype.newbyteorder("="), order="C")
            self._raw = None
        return self._array


class ScalarStandIn(ArrayStandIn):
    """Stands for a numpy scalar."""

    __slots__ = ()


def stand_ins(budget: Budget) -> dict[tuple[str, str], StandIn]:
    """The admitted names, as (module, name), each with what answers for it.

    Args:
        budget: the memory that one file may ask for.
    """
    ndarray = StandIn(_refuse_call)

    def reconstruct(subtype: Any, *_: Any) -> ArrayStandIn:
        if subtype is not ndarray:
            raise Refused("makes arrays of a class of their own")
        return ArrayStandIn(budget)

    def frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> ArrayStandIn:
        array = ArrayStandIn(budget)
        array.fill(raw, dtype, shape, order)
        return array

    def scalar(dtype: Any, raw: Any) -> ScalarStandIn:
        value = ScalarStandIn(budget)
        value.fill(raw, dtype, (), "C")
        return value

    def encode(text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
            raise Refused(f"encodes as {encoding!r:.60}")
        budget.take(len(text))
        return text.encode("latin1")

    def ordered_dict(items: Any = ()) -> OrderedStandIn:
        if not isinstance(items, list | tuple):
            raise Refused("makes an OrderedDict of something else than pairs")
        budget.take(len(items))
        return OrderedStandIn(items)

    names: dict[tuple[str, str], StandIn] = {
        ("numpy", "ndarray"): ndarray,
        ("numpy", "dtype"): StandIn(lambda text, *flags: DTypeStandIn(text)),
        ("collections", "OrderedDict"): StandIn(ordered_dict),
        ("_codecs", "encode"): StandIn(encode),
        ("builtins", "bytes"): StandIn(_empty_bytes),
        ("__builtin__", "bytes"): StandIn(_empty_bytes),
    }
    for home in ("numpy.core", "numpy._core"):  # before numpy 2, and since
        names[home + ".multiarray", "_reconstruct"] = StandIn(reconstruct)
        names[home + ".multiarray", "scalar"] = StandIn(scalar)
        names[home + ".numeric", "_frombuffer"] = StandIn(frombuffer)
    return names


def _refuse_call(*_: Any) -> None:
    raise Refused("makes arrays by calling numpy.ndarray")


def _empty_bytes(*args: Any) -> bytes:
    """How protocol 2 writes ``b""``."""
    if args:
        raise Refused("makes bytes from arguments")
    return b""
