import pytest
import torch
from roi_align_cases import CANONICAL, SCALES, TOLERANCE, make_boxes, make_features, make_finite_boxes

from d2_maskrcnn.ops.roi_align import cpu
from d2_maskrcnn.ops.roi_align.levels import PoolingSpec
from d2_maskrcnn.ops.roi_align.taps import box_groups

SPEC = PoolingSpec((3, 4), SCALES, 0, True, *CANONICAL)


def both_ways(features, boxes):
    """Return pooled bins and gradients from the functions of the portable path."""
    counts = [len(image_boxes) for image_boxes in boxes]
    pooled = cpu.pool(features, torch.cat(boxes), counts, SPEC)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(pooled.dtype)
    return [pooled, *cpu.gradients(grad, [f.shape for f in features], torch.cat(boxes), counts, SPEC)]


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 10_000])
@pytest.mark.parametrize("kind", ["empty", "all"])
def test_chunks_do_not_change_the_result(monkeypatch, kind, chunk_bytes):
    features, boxes = make_features(channels=6), make_boxes(kind)
    whole = both_ways(features, boxes)
    monkeypatch.setattr(cpu, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(cpu, "GRADIENT_CHUNK_BYTES", chunk_bytes)
    assert all(torch.equal(*pair) for pair in zip(both_ways(features, boxes), whole, strict=True))


def test_chunks_are_of_one_level_and_of_bounded_size(monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 3000)
    boxes = [torch.rand(40, 4).sort(dim=1).values * 90 for _ in range(2)]
    shapes = [feature.shape for feature in make_features()]
    groups = list(box_groups(shapes, torch.cat(boxes), [40, 40], SPEC, torch.float32))
    chunks = list(cpu.split_into_chunks(iter(groups), 1000))
    indices = torch.cat([group.boxes for chunk in chunks for group in chunk])
    assert sorted(indices.tolist()) == list(range(80))
    assert all(len({group.level for group in chunk}) == 1 for chunk in chunks)
    assert all(sum(len(group.boxes) for group in chunk) <= 3 for chunk in chunks)


@pytest.mark.parametrize("kind", ["empty", "all"])
def test_padding_does_not_change_the_result(monkeypatch, kind):
    features, boxes = make_features(channels=6), make_boxes(kind)
    padded = both_ways(features, boxes)
    monkeypatch.setattr(cpu, "PADDING_COST", 0)
    monkeypatch.setattr(cpu, "GRADIENT_PADDING_COST", 0)
    for exact, other in zip(both_ways(features, boxes), padded, strict=True):
        torch.testing.assert_close(exact, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_memory_formats_give_the_same_bits(dtype):
    boxes = make_finite_boxes()
    contiguous = both_ways(make_features(dtype, channels_last=False), boxes)
    channels_last = both_ways(make_features(dtype), boxes)
    assert all(torch.equal(*pair) for pair in zip(contiguous, channels_last, strict=True))


def test_channels_last_levels_are_not_copied():
    feature = make_features(channels=8)[0]
    assert cpu.as_table(feature).data_ptr() == feature.data_ptr()
    assert cpu.as_table(feature.contiguous()).shape == (2 * 24 * 40, 8)


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("crop", [False, True])
def test_tables_of_other_memory_formats(monkeypatch, images, crop):
    monkeypatch.setattr(cpu, "TRANSPOSED_CELLS", 100)  # a map has 24 * 40 cells
    feature = make_features(channels=8, images=2, channels_last=False)[0][:images]
    feature = feature[:, :, 1:-1, :-3] if crop else feature
    table = cpu.as_table(feature)
    assert table.is_contiguous() and torch.equal(table, feature.permute(0, 2, 3, 1).reshape(-1, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_add_up_to_the_weights(dtype):
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    high, low = cpu.halves(weights, dtype)
    assert (high.float() - weights).abs().max() > 1e-4
    assert (high.double() + low.double() - weights).abs().max() <= 2**-18


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 8, 49])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_widened_elements_are_the_same_memory(dtype, columns):
    rows = torch.randn(5, columns).to(dtype)
    wider = cpu.widen_elements(rows)
    assert wider.data_ptr() == rows.data_ptr()
    assert wider.element_size() * wider.shape[1] == rows.element_size() * columns
