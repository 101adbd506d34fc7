"""Only arrays and plain values are made: each malicious pickle would leave a file behind if any of it were run."""

import builtins
import collections
import functools
import io
import os
import pickle
import sys

import numpy as np
import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.safe_pickle import MAX_DEPTH, MAX_TUPLES, load_pickle


class Call:
    """Is pickled as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Evil(np.ndarray):
    """A subclass of an array."""


def touch(marker):
    """Return a shell command that creates the file ``marker``."""
    return f"touch {marker}"


def malicious(marker):
    command = touch(marker)
    python = f"open({str(marker)!r}, 'w').close()"
    objects = np.empty(1, dtype=object)
    objects[0] = Call(os.system, command)
    return {
        "os.system": Call(os.system, command),
        "builtins.exec": Call(exec, python),
        "getattr": Call(getattr, builtins.dict, "fromkeys"),
        "nested": {"model": [{"w": (np.ones(2), Call(os.system, command))}]},
        "as key": {Call(os.system, command): 1},
        "partial": Call(functools.partial, os.system, command),
        "numpy.loads": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        "object array": objects,
        "array class": np.ones(2).view(Evil),
        "masked": np.ma.masked_array([1.0], [True]),
        "record": np.zeros(2, dtype=[("a", "f4")]),
        "datetime": np.zeros(2, dtype="M8[s]"),
        "text array": np.array(["text"]),
        "class": Call,
        "function": os.system,
        "module function": np.ones,
        "defaultdict": collections.defaultdict(list),
        "range": range(3),
    }


@pytest.mark.parametrize("name", ["os.system", "nested", "object array", "numpy.loads", "as key", "builtins.exec"])
def test_the_malicious_files_work_on_an_ordinary_unpickler(tmp_path, name):
    marker = tmp_path / "was_run"
    pickle.loads(pickle.dumps(malicious(marker)[name]))
    assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", list(malicious("marker")))
def test_no_code_is_run_and_no_other_object_is_made(write_pickle, tmp_path, name, protocol):
    marker = tmp_path / "was_run"
    path = write_pickle(pickle.dumps(malicious(marker)[name], protocol))
    with pytest.raises(UserError, match=r"refused, no code in it was run") as info:
        load_pickle(path)
    assert not marker.exists()
    assert str(path) in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (Call(os.system, "true"), f"{os.system.__module__}.system"),
        (Call(eval, "1"), "builtins.eval"),
        (Call(functools.partial, print), "functools.partial"),
        (Call(np.load, "x"), "numpy.load"),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4])
def test_the_refusal_names_the_import(write_pickle, what, name, protocol):
    with pytest.raises(UserError, match=f"tries to import '{name}'"):
        load_pickle(write_pickle(what, protocol))


NDARRAY = b"cnumpy\nndarray\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY = RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR"
DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4K\x00K\x01tR"


def dtype_state(state):
    return b"\x80\x03" + DTYPE + pickle.dumps(state, 2)[2:-1] + b"b."


def array_state(shape, raw, dtype=DTYPE):
    return (
        b"\x80\x03"
        + ARRAY
        + b"(K\x01"
        + pickle.dumps(shape, 3)[2:-1]
        + dtype
        + b"\x89"
        + pickle.dumps(raw, 3)[2:-1]
        + b"tb."
    )


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02.", "truncated or damaged"),
        (b"\x80\x03" + ARRAY + b".", "an array without contents"),
        # shapes that do not match the bytes
        (array_state((2**40,), b"1234"), "shape"),
        (array_state((2**62, 2**62), b"1234"), "shape"),
        (array_state((-1,), b"1234"), "shape"),
        (array_state((True,), b"1234"), "shape"),
        (array_state([1], b"1234"), "shape"),
        (array_state((1.0,), b"1234"), "shape"),
        (array_state((1,), b"12345"), "5 bytes"),
        (array_state((1,), None), "NoneType"),
        (array_state((1,), [1, 2]), "list"),
        (array_state((1,), b"1234", b"K\x05"), "int from bytes"),
        (array_state((1,), b"1234", NDARRAY), "_Name from bytes"),
        # types
        (b"\x80\x03cnumpy\ndtype\n(" + text("O8") + b"tR.", "'O8'"),
        (b"\x80\x03cnumpy\ndtype\n(" + text("V8") + b"tR.", "'V8'"),
        (b"\x80\x03cnumpy\ndtype\n(" + text("f4,O") + b"tR.", "'f4,O'"),
        (b"\x80\x03cnumpy\ndtype\n(" + text("nonsense") + b"tR.", "nonsense"),
        (b"\x80\x03cnumpy\ndtype\n(K\x03tR.", "type 3"),
        (dtype_state((3, "<", None, None, None, 0)), "damaged dtype"),
        (dtype_state((3, "|", None, ("a",), {"a": 1}, 4, 1, 0)), "records"),
        (dtype_state((3, "|", ("f4", (2,)), None, None, 4, 1, 0)), "records"),
        (dtype_state((3, "?", None, None, None, 4, 1, 0)), "truncated or damaged"),
        (dtype_state((3, ">", None, None, None, -1, -1, 0)), "byte order '>'"),
        # calls of the allowed names in ways that arrays do not need
        (b"\x80\x03" + NDARRAY + b"(K\x03tR.", "numpy.ndarray"),
        (b"\x80\x03" + NDARRAY + b".", "something other"),
        (b"\x80\x03" + RECONSTRUCT + b"(" + RECONSTRUCT + b"K\x00\x85C\x01btR.", "another class"),
        (b"\x80\x03" + NDARRAY + b")\x81.", "truncated or damaged"),  # NEWOBJ needs a class
        (b"\x80\x03" + NDARRAY + b"}" + text("x") + b"K\x01sb.", "truncated or damaged"),  # BUILD of an allowed name
        (b"\x80\x03" + NDARRAY + b"N}" + text("_function") + NDARRAY + b"s\x86b.", "changes an imported name"),
        (b"\x80\x03" + ARRAY + b"(K\x01K\x01tb.", "truncated or damaged"),
        (b"\x80\x03c_codecs\nencode\n(" + text("x") + text("rot13") + b"tR.", "rot13"),
        (b"\x80\x03c_codecs\nencode\n(" + text("x") + text("idna") + b"tR.", "idna"),
        (b"\x80\x03cbuiltins\nbytes\n(J\xff\xff\xff\x7ftR.", "truncated or damaged"),
        (b"\x80\x03ccollections\nOrderedDict\n(K\x05tR.", "OrderedDict"),
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "numpy.ndarray.__class__"),
        # opcodes that reach outside the file
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02Pname\n.", "PERSID"),
        (b"\x80\x02K\x01Q.", "BINPERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        # opcodes that allocate
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "memo number 2147483647"),
        (b"\x80\x02K\x01p4000000000\n.", "memo number 4000000000"),
        (b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00abc.", "truncated or damaged"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00abc.", "truncated or damaged"),
        (b"\x80\x03T\xff\xff\xff\x7fabc.", "truncated or damaged"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x00K\x01.", "truncated or damaged"),
        # depth
        (b"\x80\x03" + b"]" * (MAX_DEPTH + 3) + b"a" * (MAX_DEPTH + 2) + b".", "deeper"),
        (b"\x80\x03)" + b"\x85" * (MAX_TUPLES + 1) + b"." , "tuples"),
        (b"\x80\x03}(" + text("x") + b")" + b"\x85" * (MAX_TUPLES + 1) + b"K\x01u.", "tuples"),
    ],
)  # fmt: skip
def test_tricks_are_refused(write_pickle, content, reason):
    with pytest.raises(UserError, match=r"refused|truncated or damaged") as info:
        load_pickle(write_pickle(content))
    assert reason in str(info.value)


def test_a_list_that_contains_itself(write_pickle):
    loop = []
    loop.append(loop)
    with pytest.raises(UserError, match="deeper"):
        load_pickle(write_pickle(loop))


def test_shared_lists_are_not_expanded(write_pickle):
    """A tree of shared lists with 100**25 leaves must not be expanded."""
    tree = [np.ones(1)]
    for _ in range(25):
        tree = [tree] * 100
    loaded = load_pickle(write_pickle(tree))
    assert loaded[0] is loaded[99]


def repeated(make, times):
    """Return the pickle of a list of ``times`` calls that all take the shared text in memo 0."""
    return b"\x80\x03" + text("a" * 100_000) + b"q\x000](" + make * times + b"e."


@pytest.mark.parametrize(
    "make",
    [
        b"c_codecs\nencode\n(h\x00" + text("latin1") + b"tR",
        ARRAY + b"(K\x01J\xa0\x86\x01\x00\x85cnumpy\ndtype\n(" + text("u1") + b"K\x00K\x01tR\x89h\x00tb",
    ],
)
def test_copies_of_shared_bytes_are_counted(write_pickle, make):
    assert len(load_pickle(write_pickle(repeated(make, 1)))) == 1
    with pytest.raises(UserError, match="more memory"):
        load_pickle(write_pickle(repeated(make, 1000)))


def test_copies_of_shared_pairs_are_counted(write_pickle):
    pairs = [(str(i), None) for i in range(2000)]
    shared = pickle.dumps(pairs, 3)[:-1] + b"q\x000"
    ordered = b"ccollections\nOrderedDict\nj\x01\x00\x00\x00\x85R"
    content = shared.replace(b"q\x000", b"r\x01\x00\x00\x000") + b"](" + ordered * 100 + b"e."
    with pytest.raises(UserError, match="more memory"):
        load_pickle(write_pickle(content))


def test_no_module_is_imported(write_pickle):
    """Importing a module runs its code."""
    content = b"\x80\x02cantigravity\nfly\n."
    with pytest.raises(UserError, match=r"antigravity\.fly"):
        load_pickle(write_pickle(content))
    assert "antigravity" not in sys.modules


def test_bytes_io_pickles_of_torch_are_refused(write_pickle):
    import torch

    stream = io.BytesIO()
    pickle.dump({"w": torch.ones(2)}, stream)
    with pytest.raises(UserError, match=r"torch\._utils\._rebuild_tensor_v2"):
        load_pickle(write_pickle(stream.getvalue()))
