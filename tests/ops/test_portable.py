import pytest
import torch
from roi_align_cases import CANONICAL, SCALES, TOLERANCE, make_boxes, make_features, make_finite_boxes

from d2_maskrcnn.ops.roi_align import box_groups, tap_lists
from d2_maskrcnn.ops.roi_align import cpu as portable
from d2_maskrcnn.ops.roi_align.spec import PoolingSpec

SPEC = PoolingSpec((3, 4), SCALES, 0, True, *CANONICAL)


def both_ways(features, boxes):
    """Pooled bins and gradients, straight from the functions of the portable path."""
    counts = [len(image_boxes) for image_boxes in boxes]
    pooled = portable.pool(features, torch.cat(boxes), counts, SPEC)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(pooled.dtype)
    return [pooled, *portable.gradients(grad, [f.shape for f in features], torch.cat(boxes), counts, SPEC)]


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 10_000])
@pytest.mark.parametrize("kind", ["empty", "all"])
def test_chunks_do_not_change_the_result(monkeypatch, kind, chunk_bytes):
    features, boxes = make_features(channels=6), make_boxes(kind)
    whole = both_ways(features, boxes)
    monkeypatch.setattr(portable, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(portable, "GRADIENT_CHUNK_BYTES", chunk_bytes)
    assert all(torch.equal(*pair) for pair in zip(both_ways(features, boxes), whole, strict=True))


def test_chunks_are_of_one_level_and_of_bounded_size(monkeypatch):
    monkeypatch.setattr(portable, "CHUNK_BYTES", 3000)
    boxes = [torch.rand(40, 4).sort(dim=1).values * 90 for _ in range(2)]
    shapes = [feature.shape for feature in make_features()]
    groups = list(box_groups.box_groups(shapes, torch.cat(boxes), [40, 40], SPEC, torch.float32))
    chunks = list(portable.chunks(iter(groups), 1000))
    places = torch.cat([group.boxes for chunk in chunks for group in chunk])
    assert sorted(places.tolist()) == list(range(80))
    assert all(len({group.level for group in chunk}) == 1 for chunk in chunks)
    assert all(sum(len(group.boxes) for group in chunk) <= 3 for chunk in chunks)


KINDS = [
    # (level, taps along y, along x, boxes), most taps to fill up with, and which kind each goes into
    ([], 100, []),
    ([(0, 2, 2, 1)], 100, [0]),
    ([(0, 2, 2, 3), (0, 2, 3, 1)], 25, [1, 1]),  # 3 boxes, 4 bins, 2 taps more: 24
    ([(0, 2, 2, 3), (0, 2, 3, 1)], 24, [0, 1]),
    ([(0, 2, 2, 1), (1, 2, 3, 1)], 100, [0, 1]),  # levels never mix
    ([(0, 2, 4, 1), (0, 3, 3, 1)], 100, [0, 1]),  # no fewer taps along either axis
    ([(0, 2, 2, 1), (0, 2, 3, 1), (0, 3, 3, 1)], 25, [2, 2, 2]),  # one after the other: 8, then 2 boxes, 24
    ([(0, 4, 4, 1), (0, 2, 2, 1), (0, 2, 3, 1)], 9, [0, 2, 2]),
]


@pytest.mark.parametrize(("kinds", "filling", "expected"), KINDS)
def test_small_groups_go_into_larger_ones(kinds, filling, expected):
    packed = [box_groups.pack_kind(*kind[:3]) for kind in kinds]
    merged = box_groups.merge_kinds(packed, [kind[3] for kind in kinds], 4, filling)
    assert merged == [packed[i] for i in expected]


@pytest.mark.parametrize("kind", ["empty", "all"])
def test_filling_up_does_not_change_the_result(monkeypatch, kind):
    features, boxes = make_features(channels=6), make_boxes(kind)
    filled = both_ways(features, boxes)
    monkeypatch.setattr(portable, "FILLING", 0)
    monkeypatch.setattr(portable, "GRADIENT_FILLING", 0)
    for exact, other in zip(both_ways(features, boxes), filled, strict=True):
        torch.testing.assert_close(exact, other, rtol=0, atol=1e-6)


def test_large_boxes_apart_from_small_ones(monkeypatch):
    # A box far larger than its level's canonical size has many samples in a bin; small ones must not pay for it.
    boxes = [torch.tensor([[0.0, 0, 16, 16], [-4000, -3000, 5000, 4000]]), torch.tensor([[5.0, 5, 30, 30]])]
    shapes = [feature.shape for feature in make_features()]
    groups = list(box_groups.box_groups(shapes, torch.cat(boxes), [2, 1], SPEC, torch.float32))
    most_taps = {place: group.taps_per_bin for group in groups for place in group.boxes.tolist()}
    assert most_taps[0] <= 16 < most_taps[1]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_memory_formats_give_the_same_bits(dtype):
    boxes = make_finite_boxes()
    contiguous = both_ways(make_features(dtype, channels_last=False), boxes)
    channels_last = both_ways(make_features(dtype), boxes)
    assert all(torch.equal(*pair) for pair in zip(contiguous, channels_last, strict=True))


def test_channels_last_levels_are_not_copied():
    feature = make_features(channels=8)[0]
    assert portable.as_table(feature).data_ptr() == feature.data_ptr()
    assert portable.as_table(feature.contiguous()).shape == (2 * 24 * 40, 8)


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("crop", [False, True])
def test_tables_of_other_memory(monkeypatch, images, crop):
    monkeypatch.setattr(portable, "TRANSPOSED_CELLS", 100)  # a map has 24 * 40 cells
    feature = make_features(channels=8, images=2, channels_last=False)[0][:images]
    feature = feature[:, :, 1:-1, :-3] if crop else feature
    table = portable.as_table(feature)
    assert table.is_contiguous() and torch.equal(table, feature.permute(0, 2, 3, 1).reshape(-1, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_add_up_to_the_weights(dtype):
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    high, low = tap_lists.halves(weights, dtype)
    assert (high.float() - weights).abs().max() > 1e-4
    assert (high.double() + low.double() - weights).abs().max() <= 2**-18


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 8, 49])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_wide_rows_are_the_same_memory(dtype, columns):
    rows = torch.randn(5, columns).to(dtype)
    wider = portable.wide(rows)
    assert wider.data_ptr() == rows.data_ptr()
    assert wider.element_size() * wider.shape[1] == rows.element_size() * columns
