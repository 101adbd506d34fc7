"""Arrays and plain values come through exactly, and damaged files are named."""

import collections
import pickle
import tracemalloc

import numpy as np
import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.safe_pickle import check_pickle, load_pickle

ARRAYS = {
    "empty": np.zeros((0, 3), np.float32),
    "scalar_array": np.array(2.5),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.arange(4, dtype=np.float16),
    "int": np.array([[-1, 2**40]]),
    "bytes": np.arange(256, dtype=np.uint8),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "strided": np.arange(20, dtype=np.int16)[::3],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_kind_come_back(write_pickle, protocol):
    loaded = load_pickle(write_pickle(ARRAYS, protocol))
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert type(loaded[name]) is np.ndarray
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].flags.writeable and loaded[name].flags.c_contiguous and loaded[name].flags.owndata


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        {},
        None,
        [1, 2.5, True, "text", b"bytes", b"", 2**80],
        {"a": ({"b": [()]},), 3: None},
        np.float32(1.5),
        np.int64(-7),
    ],
)
def test_plain_values_come_back(write_pickle, protocol, value):
    loaded = load_pickle(write_pickle(value, protocol))
    assert loaded == value and type(loaded) is type(value)


@pytest.mark.parametrize("value", [set(), {1, 2}, frozenset({"x"})])
def test_sets_have_opcodes_since_protocol_4(write_pickle, value):
    assert load_pickle(write_pickle(value, protocol=4)) == value


def test_ordered_dicts_come_back_as_dicts_without_attributes(write_pickle):
    state = collections.OrderedDict(b=np.ones(2), a=np.zeros(1))
    state._metadata = {"": {"version": 1}}
    loaded = load_pickle(write_pickle({"model": state}))
    assert type(loaded["model"]) is dict and list(loaded["model"]) == ["b", "a"]


def test_shared_arrays_stay_shared(write_pickle):
    array = np.ones(3)
    loaded = load_pickle(write_pickle([array, array]))
    assert loaded[0] is loaded[1]


def test_old_numpy_and_python_2_names(write_pickle):
    """The model zoo's ImageNet files were written by Python 2 with protocol 2: bytes as str."""
    raw = np.array([1.0, -2.0], "<f4").tobytes()
    old = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + raw + b"tbs."
    )
    np.testing.assert_array_equal(load_pickle(write_pickle(old))["w"], np.array([1.0, -2.0], np.float32))


@pytest.mark.parametrize("home", [b"numpy.core", b"numpy._core"])
def test_both_homes_of_numpy(write_pickle, home):
    content = pickle.dumps(np.arange(3), 2)
    content = content.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", home)
    np.testing.assert_array_equal(load_pickle(write_pickle(content)), np.arange(3))


@pytest.mark.parametrize("keep", [0, 1, 2, 10, 100, 200, -2, -1])
def test_truncated_files(write_pickle, keep):
    content = pickle.dumps({"model": {"w": np.arange(100.0)}}, 2)
    path = write_pickle(content[:keep])
    with pytest.raises(UserError, match=r"truncated|empty"):
        load_pickle(path)


def test_check_pickle_reads_to_the_end(write_pickle):
    content = pickle.dumps({"w": np.ones(100)}, 2)
    assert check_pickle(write_pickle(content)) is None
    with pytest.raises(UserError, match="truncated"):
        check_pickle(write_pickle(content[:-20]))
    with pytest.raises(UserError, match="followed by 4 more bytes"):
        check_pickle(write_pickle(content + b"more"))


def test_memory_stays_near_the_size_of_the_file(write_pickle):
    big = np.zeros(2_000_000, np.float32)
    path = write_pickle({"w": big}, protocol=4)
    tracemalloc.start()
    try:
        assert load_pickle(path)["w"].nbytes == big.nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.1 * big.nbytes
