"""Decode and encode the brush masks of Label Studio, which are compressed with rle-pack.

The code (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack) is a stream of bits, the highest first: the
number of values (32 bits), the bits per value minus 1 (5), and four widths minus 1 (4 each). Then follow blocks: a bit
that says whether one value is repeated, the index of a width (2 bits), the length of the block minus 1 in that many
bits, and one value or as many as the block is long. The values are the bytes of an RGBA image, row by row.
"""

from typing import Any

import numpy as np

from d2_maskrcnn.errors import UserError

_WIDTHS = (3, 8, 14, 16)  # bits of lengths, as this encoder uses them


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self.position = 0

    def read(self, count: int) -> int:
        taken = self.take(count)
        return int(taken @ (1 << np.arange(count - 1, -1, -1, dtype=np.int64)))

    def take(self, count: int) -> np.ndarray:
        if self.position + count > len(self._bits):
            raise UserError("a brush mask that is truncated")
        self.position += count
        return self._bits[self.position - count : self.position]


def decode_brush(rle: Any, height: int, width: int) -> np.ndarray:
    """Decode a brush mask.

    Args:
        rle: list of bytes.
        height, width: of the image, in pixels.

    Returns:
        (height, width) bool, where the image is not transparent.

    Raises:
        UserError: it is malformed, or of another size.
    """
    try:
        bits = _Bits(bytes(rle))
    except (TypeError, ValueError) as error:
        raise UserError("a brush mask that is not a list of bytes") from error
    count = bits.read(32)
    if count != height * width * 4:
        raise UserError(f"a brush mask of {count // 4} pixels in an image of {width}x{height}")
    size = bits.read(5) + 1
    widths = [bits.read(4) + 1 for _ in range(4)]
    weights = 1 << np.arange(size - 1, -1, -1, dtype=np.int64)
    values = np.zeros(count, dtype=np.int64)
    done = 0
    while done < count:
        repeated = bits.read(1)
        length = bits.read(widths[bits.read(2)]) + 1
        stop = min(done + length, count)
        values[done:stop] = bits.read(size) if repeated else bits.take(size * (stop - done)).reshape(-1, size) @ weights
        done = stop
    return values[3::4].reshape(height, width) > 0


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask (H, W) bool; see :func:`decode_brush`. Pixels of the mask are white, others transparent."""
    flat = np.concatenate(([False], mask.ravel(), [False]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.concatenate((edges, [mask.size])) if mask.size else edges
    text = [f"{4 * mask.size:032b}", f"{7:05b}", *(f"{each - 1:04b}" for each in _WIDTHS)]
    start = 0
    for number, end in enumerate(ends.tolist()):
        left = 4 * (end - start)
        while left:
            length = min(left, 1 << _WIDTHS[-1])
            index = next(i for i, bits in enumerate(_WIDTHS) if length <= 1 << bits)
            text.append(f"1{index:02b}{length - 1:0{_WIDTHS[index]}b}{255 * (number % 2):08b}")
            left -= length
        start = end
    packed = "".join(text)
    packed += "0" * (-len(packed) % 8)
    return list(int(packed, 2).to_bytes(len(packed) // 8, "big"))
