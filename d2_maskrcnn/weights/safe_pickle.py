"""Read pickles of NumPy arrays and plain containers without running code.

A pickle is a program: ``GLOBAL`` imports any name, and ``REDUCE`` calls it. Here nothing is ever imported. The few
names that published weight files use stand for functions of this module, which record and check a dtype, a shape and
bytes; every other name is refused. ``torch.load`` does not read the model zoo's files, which are plain pickles.
The limits on memory and nesting are needed as well: allowed calls alone can expand 1 MB to 7 GB, or overflow the stack.
"""

import math
import mmap
import os
import pickle
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from d2_maskrcnn.errors import UserError

MAX_DEPTH = 32  # nesting of containers; weight files need three levels
MAX_TUPLES = 30_000  # an array needs six; hashing tuples nested deeper than this could overflow the C stack
# Extension codes import without a name; persistent ids and out-of-band buffers refer to data outside the file.
_FORBIDDEN_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_TUPLE_OPCODES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_DTYPES = {
    f"{kind}{size}" for kind, sizes in {"b": "1", "u": "1248", "i": "1248", "f": "248"}.items() for size in sizes
}
_DTYPES |= {"c8", "c16"}
# What unpickling a damaged file raises.
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    TypeError,
    LookupError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class Refused(Exception):
    """Raised for something that a weight file does not need; the message completes "this pickle ..."."""


class _Name:
    """Stands for an imported name. Not a class and immutable, so no opcode can instantiate or change it."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("changes an imported name")


class _OrderedDict(dict):
    """Stands for ``collections.OrderedDict``; ignores attributes (torch's ``_metadata``)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """Stands for ``numpy.dtype``: numbers in the byte order of this machine."""

    __slots__ = ("value",)

    def __init__(self, code: Any) -> None:
        if code not in _DTYPES:
            raise Refused(f"contains arrays of type {code!r:.60}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *record = state[1:5]
        if any(part is not None for part in record):
            raise Refused("contains arrays of records")
        if order not in ("|", "=") and np.dtype(np.float32).newbyteorder(order) != np.float32:
            raise Refused(f"contains arrays of byte order {order!r:.60}")
        if state[0] != 3 or state[5:] != (-1, -1, 0):  # version; size, alignment and flags, which numbers do not need
            raise Refused(f"contains a damaged dtype {state!r:.60}")


class _Array:
    """Stands for ``numpy.ndarray``: dtype, shape and bytes, checked against each other."""

    __slots__ = ("dtype", "order", "raw", "shape")

    def __init__(self) -> None:
        self.raw: bytes | bytearray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state if len(state) == 5 else (0, *state)  # old NumPy wrote no version
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        """Record the contents. ``raw`` must have exactly the bytes that ``shape`` and ``dtype`` need."""
        if isinstance(raw, str):  # Python 2 wrote bytes as text
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _DType):
            raise Refused(f"fills an array of {type(dtype).__name__} from {type(raw).__name__}")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise Refused(f"contains an array of shape {shape!r:.60}")
        if math.prod(shape) * dtype.value.itemsize != len(raw) or order not in ("C", "F"):
            raise Refused(f"contains an array of shape {shape!r:.60} with {len(raw)} bytes")
        self.raw, self.dtype, self.shape, self.order = raw, dtype.value, shape, order
        return self

    def make(self) -> np.ndarray:
        """Return a new C-contiguous array."""
        if self.raw is None:
            raise Refused("contains an array without contents")
        return np.array(np.frombuffer(self.raw, self.dtype).reshape(self.shape, order=self.order), order="C")


class _Scalar(_Array):
    """Stands for a NumPy scalar."""

    __slots__ = ()


class _Loader(pickle.Unpickler):
    """Unpickle with the allowed names only, then convert to arrays and plain containers.

    Args:
        file: the pickle. Text and bytes may be shared by many calls: without a limit on all copies together (three
            times its size), a file of 1 MB could take 7 GB.
    """

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(cast(IO[bytes], file), encoding="latin1")
        self._budget = 3 * file.size()
        self._converted: dict[int, Any] = {}
        ndarray = _Name(self._no_call)
        names: dict[tuple[str, str], _Name] = {
            ("numpy", "ndarray"): ndarray,
            ("numpy", "dtype"): _Name(lambda code, *flags: _DType(code)),
            ("collections", "OrderedDict"): _Name(self._ordered_dict),
            ("_codecs", "encode"): _Name(self._encode),
            ("builtins", "bytes"): _Name(lambda: b""),  # how protocol 2 writes empty bytes
            ("__builtin__", "bytes"): _Name(lambda: b""),
        }
        for package in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
            names[package + ".multiarray", "_reconstruct"] = _Name(lambda kind, *_: self._empty(kind is ndarray))
            names[package + ".multiarray", "scalar"] = _Name(lambda dtype, raw: _Scalar().fill(raw, dtype, (), "C"))
            names[package + ".numeric", "_frombuffer"] = _Name(
                lambda raw, dtype, shape, order, *_: _Array().fill(raw, dtype, shape, order)
            )
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise Refused(f"tries to import {module + '.' + name!r:.120}")
        return self._names[module, name]

    def load(self) -> Any:
        """Return the content with arrays in place of their stand-ins."""
        return self._plain(super().load(), 0)

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise Refused("needs more memory than its size explains")

    def _no_call(self, *_: Any) -> None:
        raise Refused("calls numpy.ndarray")

    def _empty(self, is_plain: bool) -> _Array:
        if not is_plain:
            raise Refused("contains arrays of another class than numpy.ndarray")
        return _Array()

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise Refused(f"encodes text as {encoding!r:.60}")
        self._spend(len(text))
        return text.encode("latin1")

    def _ordered_dict(self, items: Any = ()) -> _OrderedDict:
        if not isinstance(items, list | tuple):
            raise Refused("makes an OrderedDict of something other than pairs")
        self._spend(len(items))
        return _OrderedDict(items)

    def _plain(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray):
            return value
        if depth > MAX_DEPTH:
            raise Refused(f"nests containers deeper than {MAX_DEPTH}")
        if id(value) not in self._converted:  # shared objects once only, or a few bytes could expand to very many
            self._converted[id(value)] = self._convert(value, depth)
        return self._converted[id(value)]

    def _convert(self, value: Any, depth: int) -> Any:
        if isinstance(value, _Array):
            self._spend(len(value.raw or b""))
            return value.make()[()] if isinstance(value, _Scalar) else value.make()
        if isinstance(value, dict):
            if not all(isinstance(key, str | bytes | int | float | bool | None) for key in value):
                raise Refused("has dict keys other than text and numbers")
            return {key: self._plain(item, depth + 1) for key, item in value.items()}
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                return kind(self._plain(item, depth + 1) for item in value)
        raise Refused("contains something other than arrays and plain containers")


def scan_opcodes(file: IO[bytes]) -> Iterator[str]:
    """Yield the name of each opcode of a pickle, without executing any.

    Raises:
        ValueError: the pickle is truncated or damaged.
        Refused: a memo number that would make the unpickler allocate far more than the file explains.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file), start=1):
        # The unpickler allocates an array up to the largest memo number; writers count up from 0 or 1.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise Refused(f"uses the memo number {argument}")
        yield opcode.name


def _scan(file: mmap.mmap) -> None:
    tuples = 0
    for opcode in scan_opcodes(cast(IO[bytes], file)):
        if opcode in _FORBIDDEN_OPCODES:
            raise Refused(f"uses the opcode {opcode}")
        tuples += opcode in _TUPLE_OPCODES
        if tuples > MAX_TUPLES:
            raise Refused(f"has more than {MAX_TUPLES} tuples")
    if file.tell() != file.size():
        raise Refused(f"is followed by {file.size() - file.tell()} more bytes")


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of NumPy arrays, plain containers, numbers and text; nothing in it is imported or called.

    Pickles of Python 2 are read as well (their ``str`` as Latin-1, as NumPy requires).

    Args:
        path: a local file.

    Returns:
        The content: C-contiguous arrays with memory of their own; ``OrderedDict`` becomes ``dict``.

    Raises:
        UserError: the file is empty, truncated or not a pickle, or uses anything that arrays do not need.
    """
    return _read(Path(path), lambda file: _Loader(file).load())


def check_pickle(path: str | os.PathLike[str]) -> None:
    """Check that the file is one complete pickle of allowed opcodes, without loading it.

    Raises:
        UserError: it is not.
    """
    _read(Path(path), lambda file: None)


def _read(path: Path, load: Callable[[mmap.mmap], Any]) -> Any:
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty: copy or download it again.")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        try:
            _scan(file)
            file.seek(0)
            return load(file)
        except Refused as error:
            raise UserError(
                f"{path}: refused, no code in it was run: this pickle {error}, but a weight file may contain only "
                "numeric NumPy arrays and plain containers. Use a file of the model zoo, or save the state dict with "
                "torch.save."
            ) from None
        except _BROKEN as error:
            raise UserError(
                f"{path} is truncated or damaged ({size} bytes; {type(error).__name__}: {str(error)[:120]}): copy or "
                "download it again."
            ) from error
