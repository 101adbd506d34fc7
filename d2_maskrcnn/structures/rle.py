"""Decode the run lengths of compressed RLE (https://github.com/cocodataset/cocoapi, ``common/maskApi.c``).

Each character stores five bits, the lowest first, and a flag (32) that more follow; bit 16 of the last one is the sign.
From the fourth run on, the difference to the run two before is stored. pycocotools reads past the end of its buffer if
the runs do not fill the image; this module checks them.
"""

from collections.abc import Sequence

import numpy as np

from d2_maskrcnn.errors import UserError

RUN_CHARACTERS = 8  # at most, of five bits each: enough for a run of 2**39 pixels


def decode_runs(counts: str | bytes) -> np.ndarray:
    """Decode the run lengths of a compressed RLE.

    Returns:
        (R,) int64.

    Raises:
        UserError: ``counts`` is not the code of non-negative run lengths.
    """
    raw = counts.encode() if isinstance(counts, str) else counts
    if not raw:
        return np.zeros(0, dtype=np.int64)
    codes, sizes = np.frombuffer(raw, np.uint8) - 48, np.array([len(raw)])  # below 48 wraps around to above 63
    if _malformed(codes, sizes)[0]:
        raise UserError(f"segmentation: {raw[:40]!r} is not the counts of a compressed RLE")
    runs, _ = _decode_codes(codes, sizes)
    if (runs < 0).any():
        raise UserError(f"segmentation: the compressed RLE {raw[:40]!r} has a negative run length")
    return runs


def rle_pixel_counts(counts: Sequence[str]) -> np.ndarray:
    """Sum the run lengths of many compressed RLEs, much faster than with :func:`decode_runs` one by one.

    Returns:
        (N,) int64: pixels that each RLE covers, height * width of its image if it is complete; -1 if it is malformed.
    """
    encoded = [each.encode("ascii", "replace") if each.isascii() else b"" for each in counts]
    sizes = np.array([len(each) for each in encoded], dtype=np.int64)
    pixels = np.full(len(counts), -1, dtype=np.int64)
    codes = np.frombuffer(b"".join(encoded), np.uint8) - 48
    sound = sizes > 0
    sound[sound] = ~_malformed(codes, sizes[sound])
    if sound.any():
        runs, first = _decode_codes(codes[np.repeat(sound, sizes)], sizes[sound])
        possible = np.logical_and.reduceat((runs >= 0) & (runs < 2**32), first)
        pixels[sound] = np.where(possible, np.add.reduceat(runs, first), -1)
    return pixels


def _malformed(codes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return which of N compressed RLEs contain something else than complete runs: (N,) bool.

    Args:
        codes: (L,) uint8, characters of all RLEs minus 48, modulo 256.
        sizes: (N,) int64 above 0, characters per RLE.
    """
    first = np.cumsum(sizes) - sizes
    last = first + sizes - 1
    ends = codes & 32 == 0
    incomplete = ~ends[last]
    ends[last] = True
    ends = np.flatnonzero(ends)
    invalid = codes >= 64
    invalid[ends[np.diff(ends, prepend=-1) > RUN_CHARACTERS]] = True
    return np.logical_or.reduceat(invalid, first) | incomplete if len(sizes) else np.zeros(0, dtype=bool)


def _decode_codes(codes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decode well-formed compressed RLEs: (R,) int64 run lengths and (N,) index of the first run of each RLE."""
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends + 1 - starts
    runs = (codes[starts] & 31).astype(np.int64)
    for place in range(1, lengths.max()):
        longer = np.flatnonzero(lengths > place)
        runs[longer] += (codes[starts[longer] + place] & 31).astype(np.int64) << 5 * place
    negative = np.flatnonzero(codes[ends] & 16)
    runs[negative] -= 1 << 5 * lengths[negative]
    stops = np.searchsorted(ends, np.cumsum(sizes) - 1) + 1  # of the runs of each RLE
    first = np.concatenate(([0], stops[:-1]))
    return _undo_differences(runs, first, stops), first


def _undo_differences(runs: np.ndarray, first: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Add to each run the one two before in its RLE, except to the first three: (R,) int64.

    Args:
        runs: (R,) int64, of N RLEs, one after the other.
        first, stops: (N,) int64, where the runs of each RLE begin and end.
    """
    sums = np.empty_like(runs)
    sums[0::2], sums[1::2] = np.cumsum(runs[0::2]), np.cumsum(runs[1::2])
    # What to subtract again: sums of earlier RLEs and, for the runs 2, 4, ..., that of run 0.
    own, other = sums[first], np.where(first > 0, sums[first - 1], 0)
    for parity in (0, 1):
        base = np.where(first % 2 == parity, own, other)
        sums[parity::2] -= np.repeat(base, (stops - parity + 1) // 2 - (first - parity + 1) // 2)
    sums[first] = runs[first]
    return sums
