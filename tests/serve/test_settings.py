"""Limits and the API key."""

import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.serve import Settings, read_api_key

KEY = "0123456789abcdef"


def test_no_key():
    assert read_api_key(None, {}) == ""


@pytest.mark.parametrize(
    "key", ["", "short", "0123456789 abcdef", "0123456789abcd\xe9f"], ids=["empty", "short", "space", "latin"]
)
def test_refused_keys(tmp_path, key):
    with pytest.raises(UserError, match="at least 16 ASCII characters"):
        read_api_key(None, {"D2_MASKRCNN_API_KEY": key})
    (tmp_path / "key").write_text(key)
    with pytest.raises(UserError, match="openssl rand") as error:
        read_api_key(tmp_path / "key", {})
    assert "abc" not in str(error.value).removeprefix(str(tmp_path))


def test_keys(tmp_path):
    assert read_api_key(None, {"D2_MASKRCNN_API_KEY": f"{KEY}\n"}) == KEY
    (tmp_path / "key").write_text(f"{KEY}0\n")
    assert read_api_key(tmp_path / "key", {"D2_MASKRCNN_API_KEY": KEY}) == f"{KEY}0"


@pytest.mark.parametrize("content", [None, b"\xff\xfe" * 10])
def test_unreadable_key_file(tmp_path, content):
    if content:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UserError, match="the API key cannot be read"):
        read_api_key(tmp_path / "key", {})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_queue": 0}, "max_queue 0: expected a positive number"),
        ({"timeout": float("nan")}, "timeout nan"),
        ({"max_pixels": 10**9}, "max_pixels 1000000000: expected at most 357000000"),
        ({"default_threshold": 1.5}, "expected a number from 0 to 1"),
        (
            {"default_threshold": 0.1, "lowest_threshold": 0.2},
            "0.1 is below the lowest threshold 0.2",
        ),
    ],
)
def test_refused_limits(values, expected):
    with pytest.raises(UserError, match=expected):
        Settings(**values)
