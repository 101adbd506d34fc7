"""Values that often break readers, and ways to damage bytes."""

import random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    float("nan"), float("inf"), float("-inf"), -1, 0, -0.0, 1, 0.5, 96.0, 1e9, 2.08e8, 1e308, 5e-324, -1e9, 2**31,
    2**53 + 1, 2**63, 2**64, 10**30, 10**400,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, True, False, "", "abc", "1", "nan", "../../etc/passwd", "a\0b", "\ud800", "=1+1", "x" * 5000, [], {}, [[]],
    [1], [None], {"a": 1}, [[[[1]]]],
)  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """Return a value of any type that JSON or YAML can express."""
    return rng.choice(NUMBERS if rng.random() < 0.6 else OTHERS)


def damage(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Return a description and a truncated, flipped, cut or extended copy of ``content``."""
    kind = rng.choice(("truncate", "flip", "flip in the header", "cut", "zero", "append", "prepend", "empty"))
    place, data = rng.randrange(max(1, len(content))), bytearray(content)
    if kind == "truncate":
        return f"truncated to {place} bytes", bytes(data[:place])
    if kind == "flip":
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return "flipped bits", bytes(data)
    if kind == "flip in the header":
        place = rng.randrange(min(200, len(data)))
        data[place] ^= 1 << rng.randrange(8)
        return f"flipped a bit of byte {place}", bytes(data)
    if kind == "cut":
        return f"cut 10 bytes at {place}", bytes(data[:place] + data[place + 10 :])
    if kind == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
        return f"zeroed 64 bytes at {place}", bytes(data)
    if kind == "append":
        return "appended bytes", bytes(data) + rng.randbytes(100)
    if kind == "prepend":
        return "prepended bytes", rng.randbytes(7) + bytes(data)
    return "empty", b""
