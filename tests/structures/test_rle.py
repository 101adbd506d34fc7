import numpy as np
import pytest
from pycocotools import mask as mask_util

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.rle import decode_runs, rle_pixel_counts


@pytest.mark.parametrize("runs", [[], [3], [0, 5, 1], [2, 7, 30, 4, 900, 1, 1, 2, 50, 1202]])
def test_decode_runs(runs):
    total = sum(runs)
    rle = mask_util.frPyObjects({"size": [total, 1], "counts": runs}, total, 1)
    assert decode_runs(rle["counts"]).tolist() == decode_runs(rle["counts"].decode()).tolist() == runs


@pytest.mark.parametrize("counts", ["é", "P", " ", "P" * 20 + "0", "@"])
def test_decode_malformed_runs(counts):
    with pytest.raises(UserError, match="RLE"):
        decode_runs(counts)


def test_pixel_counts_of_many_rles():
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 10 ** rng.integers(1, 6), rng.integers(1, 12)).tolist() for _ in range(300)]
    counts = [mask_util.frPyObjects({"size": [sum(r), 1], "counts": r}, sum(r), 1)["counts"].decode() for r in lists]
    expected = [sum(runs) for runs in lists]
    for number, malformed in enumerate(["", "é", "P", "o" * 30, "P" * 20 + "0", "\ud800", "@"]):
        counts.insert(7 * number, malformed)
        expected.insert(7 * number, -1)
    assert rle_pixel_counts(counts).tolist() == expected
    assert rle_pixel_counts([]).tolist() == []
