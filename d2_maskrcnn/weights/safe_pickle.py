"""Reads a pickle that holds numpy arrays and plain containers, and runs nothing that the file names.

A pickle is a program: its ``GLOBAL`` opcodes import anything and its ``REDUCE`` opcodes call it. Here no import ever
happens. The few names that pickled numpy arrays need (:func:`~d2_maskrcnn.weights.stand_ins.stand_ins`) are
answered with stand-ins of our own, which only take note of a type, a shape and bytes; the arrays are made afterwards,
from values that were checked. Every other name is refused.

Before that, the opcodes are read once without carrying them out. This finds truncated files and the ways in which a
small file can ask for much memory (lengths and memo numbers larger than the file itself).
"""

import mmap
import os
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any, cast

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.stand_ins import ArrayStandIn, Budget, Refused, ScalarStandIn, stand_ins

MAX_OPCODES = 5_000_000  # the model zoo's files have about ten thousand
MAX_TUPLES = 30_000  # an array takes six; hashing tuples nested deeper than this could overflow the C stack
MAX_DEPTH = 32  # containers in containers; weight files have three
# Extension codes import without naming anything; persistent ids and out-of-band buffers come from outside the file.
_FORBIDDEN_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_TUPLE_OPCODES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
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


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(cast(IO[bytes], file), encoding="latin1")
        # Bytes that came as text are copied twice: once as bytes, once as an array.
        self._stand_ins = stand_ins(Budget(3 * file.size()))

    def find_class(self, module: str, name: str) -> Any:
        stand_in = self._stand_ins.get((module, name))
        if stand_in is None:
            raise Refused(f"tries to import {module + '.' + name!r:.120}")
        return stand_in


def _scan(file: mmap.mmap) -> None:
    """Reads the opcodes without carrying them out.

    Raises:
        ValueError: the pickle is truncated or broken.
        Refused: an opcode that weights don't need.
    """
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file)), start=1):
        if opcode.name in _FORBIDDEN_OPCODES:
            raise Refused(f"uses the opcode {opcode.name}")
        if count > MAX_OPCODES:
            raise Refused(f"has more than {MAX_OPCODES} opcodes")
        tuples += opcode.name in _TUPLE_OPCODES
        if tuples > MAX_TUPLES:
            raise Refused(f"has more than {MAX_TUPLES} tuples")
        # Memo numbers index an array that the unpickler allocates; writers count them up from 0 or 1.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise Refused(f"uses the memo number {argument}")


class _Plain:
    """Turns what the stand-ins noted into arrays; containers are rebuilt as plain dicts, lists, tuples and sets."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray):
            return value
        if depth > MAX_DEPTH:
            raise Refused(f"nests containers deeper than {MAX_DEPTH}")
        if id(value) not in self._done:  # shared objects once only, or a few bytes could stand for very many
            self._done[id(value)] = self._convert(value, depth)
        return self._done[id(value)]

    def _convert(self, value: Any, depth: int) -> Any:
        if isinstance(value, ArrayStandIn):
            return value.make()[()] if isinstance(value, ScalarStandIn) else value.make()
        if isinstance(value, dict):
            return self._convert_dict(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
            return kind(self(item, depth + 1) for item in value)
        raise Refused("holds something else than arrays and plain containers")

    def _convert_dict(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        for key in value:
            if not isinstance(key, str | bytes | int | float | bool | None):
                raise Refused("has dict keys that are not plain")
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
            return _Plain()(_Unpickler(file).load())
        except Refused as error:
            raise UserError(
                f"{path}: refused, nothing in it was run: this pickle {error}, but a weight file may hold only "
                f"numeric numpy arrays and plain containers: {_HOW_TO_MEND}."
            ) from None
        except _BROKEN as error:
            raise UserError(
                f"{path}: not a whole pickle ({size} bytes; {type(error).__name__}: {str(error)[:120]}): it is "
                "truncated or damaged, copy or download it again."
            ) from error


def named_imports(stream: IO[bytes]) -> list[str]:
    """The names that a pickle would import, in its order, without importing them. For messages, not for decisions.

    Args:
        stream: at the beginning of the pickle.

    Raises:
        ValueError: the pickle is broken.
    """
    found: list[str] = []
    texts: list[str] = []  # the texts that were put on the unpickler's stack, as far as opcodes tell
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            found.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.append(".".join(texts[-2:]))
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            texts.append(memo.get(cast(int, argument), ""))
        elif isinstance(argument, str):
            texts.append(argument)
    return list(dict.fromkeys(found))


def scan_pickle(path: str | os.PathLike[str]) -> None:
    """Checks that the file is one whole pickle, without loading it.

    Raises:
        ValueError: it is not.
    """
    with Path(path).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        try:
            _scan(file)
        except Refused as error:
            raise ValueError(str(error)) from None
