"""Reads a pickle that holds numpy arrays and plain containers, and runs nothing that the file names.

A pickle is a program: its ``GLOBAL`` opcodes import anything and its ``REDUCE`` opcodes call it. Here no import ever
happens. The few names that pickled numpy arrays need (:data:`ADMITTED`) are answered with stand-ins of our own, which
only take note of a type, a shape and bytes; the arrays are made afterwards, from values that were checked. Every
other name is refused.

Before that, the opcodes are read once without carrying them out. This finds truncated files and the ways in which a
small file can ask for much memory (lengths and memo numbers larger than the file itself).
"""

import math
import mmap
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from d2_maskrcnn.errors import UserError

MAX_OPCODES = 5_000_000  # the model zoo's files have about ten thousand
MAX_DEPTH = 32  # containers in containers; weight files have three
_ARRAY_KINDS = "biufc"  # bool, signed, unsigned, float, complex: no objects, no records
# Extension codes import without naming anything; persistent ids and out-of-band buffers come from outside the file.
_FORBIDDEN_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    TypeError,
    IndexError,
    KeyError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)
_HOW_TO_MEND = "use a file from the model zoo, or save the state dict with torch.save to a .pth file"


class _Refused(Exception):
    """The file asks for something that weights don't need; the text says what."""


class _StandIn:
    """What the unpickler gets in place of an imported name.

    It is no class, has no ``__dict__`` and cannot be changed, so the opcodes that build objects or set attributes
    cannot use it.
    """

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("changes an admitted function")


class _Ordered(dict):
    """Stands for ``collections.OrderedDict``; attributes (torch puts its ``_metadata`` there) are not kept."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """Stands for ``numpy.dtype`` until its byte order has come with the state."""

    __slots__ = ("value",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or len(text) > 8:
            raise _Refused(f"makes arrays of type {text!r:.60}")
        try:
            self.value = np.dtype(text)
        except TypeError:
            raise _Refused(f"makes arrays of type {text!r}") from None
        if self.value.kind not in _ARRAY_KINDS:
            raise _Refused(f"makes arrays of type {text!r} ({self.value.name})")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, subtype, names, fields = state[1:5]
        if order not in ("<", ">", "|", "="):
            raise _Refused(f"makes arrays of byte order {order!r:.60}")
        if subtype is not None or names is not None or fields is not None:
            raise _Refused("makes arrays of records")
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Array:
    """Stands for a ``numpy.ndarray``: type, shape and bytes, checked against each other before any memory is taken."""

    __slots__ = ("_dtype", "_order", "_raw", "_shape", "array")

    def __init__(self) -> None:
        self._raw: bytes | None = None
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state if len(state) == 5 else (0, *state)
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> None:
        """Takes note of the contents; ``raw`` must hold exactly what ``shape`` and ``dtype`` need."""
        if not isinstance(dtype, _DType):
            raise _Refused("makes arrays without a numeric type")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as str
        if not isinstance(raw, bytes | bytearray):
            raise _Refused(f"fills arrays from {type(raw).__name__}")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise _Refused(f"makes arrays of shape {shape!r:.60}")
        if math.prod(shape) * dtype.value.itemsize != len(raw):
            raise _Refused(f"makes an array of shape {shape!r:.60} from {len(raw)} bytes")
        if order not in ("C", "F"):
            raise _Refused(f"makes arrays of memory order {order!r:.60}")
        self._raw, self._dtype, self._shape, self._order = bytes(raw), dtype.value, shape, order

    def make(self) -> np.ndarray:
        """The array: own memory, C order, the machine's byte order. The same one each time."""
        if self.array is None:
            if self._raw is None:
                raise _Refused("holds an array without contents")
            view = np.frombuffer(self._raw, self._dtype).reshape(self._shape, order=self._order)  # type: ignore[call-overload]
            self.array = np.array(view, dtype=self._dtype.newbyteorder("="), order="C")
            self._raw = None
        return self.array


class _Scalar(_Array):
    """Stands for a numpy scalar."""

    __slots__ = ()


_NDARRAY = _StandIn(lambda *args: _refuse("makes arrays by calling numpy.ndarray"))


def _refuse(what: str) -> None:
    raise _Refused(what)


def _reconstruct(subtype: Any, shape: Any = None, typecode: Any = None) -> _Array:
    if subtype is not _NDARRAY:
        raise _Refused("makes arrays of a class of their own")
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    if axis_order is not None:
        raise _Refused("makes arrays of a permuted memory order")
    array = _Array()
    array.fill(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any) -> _Scalar:
    scalar = _Scalar()
    scalar.fill(raw, dtype, (), "C")
    return scalar


def _encode(text: Any, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise _Refused(f"encodes as {encoding!r:.60}")
    return text.encode("latin1")


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise _Refused("makes bytes from arguments")
    return b""


def _admitted() -> dict[tuple[str, str], _StandIn]:
    names: dict[tuple[str, str], _StandIn] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _StandIn(lambda text, *flags: _DType(text)),
        ("collections", "OrderedDict"): _StandIn(_Ordered),
        ("_codecs", "encode"): _StandIn(_encode),
    }
    for home in ("numpy.core", "numpy._core"):  # before numpy 2, and since
        names[home + ".multiarray", "_reconstruct"] = _StandIn(_reconstruct)
        names[home + ".multiarray", "scalar"] = _StandIn(_scalar)
        names[home + ".numeric", "_frombuffer"] = _StandIn(_frombuffer)
    for home in ("builtins", "__builtin__"):  # how protocol 2 writes b""
        names[home, "bytes"] = _StandIn(_empty_bytes)
    return names


ADMITTED = _admitted()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = ADMITTED.get((module, name))
        if stand_in is None:
            raise _Refused(f"tries to import {module + '.' + name!r:.120}")
        return stand_in


def _scan(file: mmap.mmap) -> None:
    """Reads the opcodes without carrying them out.

    Raises:
        ValueError: the pickle is truncated or broken.
        _Refused: an opcode that weights don't need.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file)), start=1):
        if opcode.name in _FORBIDDEN_OPCODES:
            raise _Refused(f"uses the opcode {opcode.name}")
        if count > MAX_OPCODES:
            raise _Refused(f"has more than {MAX_OPCODES} opcodes")
        # Memo numbers index an array that the unpickler allocates; writers count them up from 0 or 1.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise _Refused(f"uses the memo number {argument}")


class _Plain:
    """Turns what the stand-ins noted into arrays; containers are rebuilt as plain dicts, lists, tuples and sets."""

    def __init__(self, size: int) -> None:
        self._bytes_left = size  # arrays cannot need more than the file has
        self._done: dict[int, Any] = {}

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray):
            return value
        if depth > MAX_DEPTH:
            raise _Refused(f"nests containers deeper than {MAX_DEPTH}")
        if id(value) not in self._done:  # shared objects once only, or a few bytes could stand for very many
            self._done[id(value)] = self._convert(value, depth)
        return self._done[id(value)]

    def _convert(self, value: Any, depth: int) -> Any:
        if isinstance(value, _Array):
            array = value.make()
            self._bytes_left -= array.nbytes
            if self._bytes_left < 0:
                raise _Refused("makes arrays larger than the file")
            return array[()] if isinstance(value, _Scalar) else array
        if isinstance(value, dict):
            return self._convert_dict(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
            return kind(self(item, depth + 1) for item in value)
        raise _Refused("holds something else than arrays and plain containers")

    def _convert_dict(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        for key in value:
            if not isinstance(key, str | bytes | int | float | bool | None):
                raise _Refused("has dict keys that are not plain")
        return {key: self(item, depth + 1) for key, item in value.items()}


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads a pickle of numpy arrays, plain containers, numbers and text; nothing that it names is imported or called.

    Python 2's pickles are read too (their ``str`` as latin-1, as numpy asks for). Arrays own their memory, are
    C-contiguous and in the machine's byte order. Reading takes up to twice the file's size in memory.

    Args:
        path: a local file.

    Returns:
        The object in the file; containers are plain ones (``OrderedDict`` comes back as ``dict``).

    Raises:
        UserError: the file is empty, truncated or no pickle, or names anything that arrays don't need.
    """
    path = Path(path)
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: the file is empty: copy or download it again.")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        try:
            _scan(file)
            file.seek(0)
            return _Plain(size)(_Unpickler(file, encoding="latin1").load())
        except _Refused as error:
            raise UserError(
                f"{path}: refused, nothing in it was run: this pickle {error}, but a weight file may hold only "
                f"numeric numpy arrays and plain containers: {_HOW_TO_MEND}."
            ) from None
        except _BROKEN as error:
            raise UserError(
                f"{path}: not a whole pickle ({size} bytes; {type(error).__name__}: {str(error)[:120]}): it is "
                "truncated or damaged, copy or download it again."
            ) from error


def scan_pickle(path: str | os.PathLike[str]) -> None:
    """Checks that the file is one whole pickle, without loading it.

    Raises:
        ValueError: it is not.
    """
    with Path(path).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        try:
            _scan(file)
        except _Refused as error:
            raise ValueError(str(error)) from None
