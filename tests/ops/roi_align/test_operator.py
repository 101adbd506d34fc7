import itertools

import pytest
import torch
from reference import reference_roi_align
from roi_align_cases import (
    BOXES,
    CANONICAL,
    ORDINARY,
    SCALES,
    SIZES,
    TOLERANCE,
    assert_equals_reference,
    make_boxes,
    make_features,
    make_finite_boxes,
    value_and_gradients,
)

from d2_maskrcnn.ops import multilevel_roi_align


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [kind for kind in BOXES if kind != "non-finite"])
def test_equals_reference(kind, sampling_ratio, aligned):
    assert_equals_reference(
        make_features(), make_finite_boxes(kind), (3, 4), SCALES, sampling_ratio, aligned, *CANONICAL
    )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_non_finite_boxes_pool_zeros(sampling_ratio):
    pooled, gradients, _ = value_and_gradients(
        multilevel_roi_align, make_features(), make_boxes("non-finite"), 3, SCALES, sampling_ratio, True, *CANONICAL
    )
    assert len(pooled) == 9
    assert torch.equal(pooled, torch.zeros_like(pooled))
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_huge_boxes_are_cheap_and_pool_almost_nothing(sampling_ratio):
    boxes = [torch.tensor([[-1e9, -1e9, 1e9, 1e9]]), torch.tensor([[-3e38, -3e38, 3e38, 3e38]])]
    pooled = multilevel_roi_align(make_features(), boxes, 7, SCALES, sampling_ratio)
    assert pooled.abs().max() < 1e-6


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes_and_memory_formats(dtype, sampling_ratio, channels_last):
    features = make_features(dtype, channels=19, channels_last=channels_last)
    assert_equals_reference(features, make_boxes("ordinary"), (2, 2), SCALES, sampling_ratio, True, *CANONICAL)


def test_float64_boxes_are_not_rounded():
    boxes = make_boxes("ordinary", torch.float64)
    features = make_features(torch.float64)
    pooled = multilevel_roi_align(features, boxes, 7, SCALES, 2)
    torch.testing.assert_close(pooled, reference_roi_align(features, boxes, (7, 7), SCALES, 2), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interpolation_weights_are_not_rounded_like_features(dtype):
    # On a constant map every bin is exactly the constant if the weights add up to 1, which they would not in half
    # precision.
    features = [torch.full((1, 8, 50, 50), 1.0, dtype=dtype)]
    boxes = torch.rand((200, 4), generator=torch.Generator().manual_seed(0)) * 80
    boxes[:, 2:] += boxes[:, :2] + 1
    pooled = multilevel_roi_align(features, [boxes], 7, [1 / 4])
    assert torch.equal(pooled, torch.ones_like(pooled))


@pytest.mark.parametrize("output_size", [1, (1, 5), (7, 7), (14, 3)])
def test_output_sizes(output_size):
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    features, boxes = make_features(channels=2), make_boxes("ordinary")
    pooled = multilevel_roi_align(features, boxes, output_size, SCALES, 0, True, *CANONICAL)
    assert pooled.shape == (11, 2, *size)
    expected = reference_roi_align(features, boxes, size, SCALES, 0, True, *CANONICAL)
    torch.testing.assert_close(pooled, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 100])
def test_numbers_of_channels(channels):
    features = make_features(torch.bfloat16, channels=channels)
    assert_equals_reference(features, make_boxes("ordinary"), (2, 3), SCALES, 0, True, *CANONICAL)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("sizes", [((1, 1), (1, 1), (1, 1)), ((1, 40), (1, 20), (1, 10)), ((24, 1), (12, 1), (6, 1))])
def test_levels_of_one_cell(sizes, sampling_ratio):
    assert_equals_reference(
        make_features(sizes=sizes), make_finite_boxes(), (3, 3), SCALES, sampling_ratio, True, *CANONICAL
    )


def test_sliced_features():
    whole = make_features(channels=12)
    part = [feature[:, 3:8, 1:, 2:-1] for feature in whole]
    assert_equals_reference(part, make_boxes("ordinary"), (3, 3), SCALES, 2, True, *CANONICAL)


@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 3, 0), (2, 0, 1)])
def test_images_without_boxes(counts):
    boxes = [torch.tensor(ORDINARY)[:count] for count in counts]
    assert_equals_reference(make_features(images=3), boxes, (2, 2), SCALES, 0, True, *CANONICAL)


def test_no_images():
    pooled = multilevel_roi_align([feature[:0] for feature in make_features(torch.bfloat16)], [], 7, SCALES)
    assert pooled.shape == (0, 5, 7, 7)
    assert pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradcheck(sampling_ratio):
    features = [f.requires_grad_() for f in make_features(torch.float64, channels=1, sizes=((4, 5), (2, 3), (1, 1)))]
    boxes = [torch.tensor([[1.3, 2.2, 12.1, 14.7], [0, 0, 32, 24]]), torch.tensor([[9, 9, 9, 9], [-9, 3, 12, 50.0]])]

    def function(*levels):
        return multilevel_roi_align(levels, boxes, (1, 2), SCALES, sampling_ratio, True, *CANONICAL)

    assert torch.autograd.gradcheck(function, features)
    assert torch.autograd.gradgradcheck(function, features)


def test_no_gradient_for_levels_that_do_not_require_it():
    features = make_features()
    features[1].requires_grad_()
    multilevel_roi_align(features, make_boxes(), 7, SCALES, 2, True, *CANONICAL).sum().backward()
    assert features[1].grad is not None
    assert features[0].grad is None


def test_the_same_bits_on_every_run():
    args = (make_boxes(), 7, SCALES, 0, True, *CANONICAL)
    runs = [value_and_gradients(multilevel_roi_align, make_features(channels=32), *args) for _ in range(2)]
    (pooled, gradients, _), (pooled_again, gradients_again, _) = runs
    assert torch.equal(pooled, pooled_again)
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_again, strict=True))


def test_two_threads_give_the_bits_of_one():
    threads = torch.get_num_threads()
    features, boxes = make_features(channels=64), [torch.rand(150, 4).sort(dim=1).values * 90 for _ in range(2)]
    one = value_and_gradients(multilevel_roi_align, features, boxes, 7, SCALES)
    try:
        torch.set_num_threads(2)
        two = value_and_gradients(multilevel_roi_align, features, boxes, 7, SCALES)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0])
    assert all(torch.equal(*pair) for pair in zip(one[1], two[1], strict=True))


def operator_arguments(kind, dtype=torch.float32):
    boxes = make_boxes(kind)
    settings = ([2, 3], list(SCALES), 0, True, *CANONICAL)
    return make_features(dtype), torch.cat(boxes), [len(b) for b in boxes], *settings


@pytest.mark.parametrize("kind", ["empty", "all"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(kind, requires_grad):
    features, *rest = operator_arguments(kind)
    features = [feature.requires_grad_(requires_grad) for feature in features]
    torch.library.opcheck(torch.ops.d2_maskrcnn.multilevel_roi_align.default, (features, *rest))
    grad = torch.randn(len(rest[0]), 5, 2, 3).requires_grad_(requires_grad)
    heights, widths = zip(*SIZES, strict=True)
    args = (grad, *rest[:2], list(heights), list(widths), *rest[2:])
    torch.library.opcheck(torch.ops.d2_maskrcnn.multilevel_roi_align_backward.default, args)


def test_compiles_as_one_graph_for_any_number_of_boxes():
    torch.compiler.reset()
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    def function(features, boxes):
        return multilevel_roi_align(features, boxes, 7, SCALES, 2, True, *CANONICAL) * 2

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for count, seed in itertools.product((11, 7, 3), (0, 1)):
        features = make_features(seed=seed)
        boxes = [torch.rand(count, 4).sort(dim=1).values * 90, torch.rand(count + 2, 4).sort(dim=1).values * 90]
        assert torch.equal(compiled(features, boxes), function(features, boxes))
    assert len(calls) == 1


def test_compiled_gradients():
    torch.compiler.reset()
    args = (make_boxes("ordinary"), 7, SCALES, 0, True, *CANONICAL)
    compiled = torch.compile(multilevel_roi_align, fullgraph=True, dynamic=True, backend="aot_eager")
    expected = value_and_gradients(multilevel_roi_align, make_features(), *args)
    actual = value_and_gradients(compiled, make_features(), *args)
    assert torch.equal(actual[0], expected[0])
    assert all(torch.equal(*pair) for pair in zip(actual[1], expected[1], strict=True))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scales": (1 / 4, 1 / 8)}, ValueError, "3 feature levels and 2 scales"),
        ({"features": []}, ValueError, "0 feature levels"),
        ({"features": [torch.zeros(2, 5, 4), *make_features()[1:]]}, ValueError, r"\(2, 5, 4\)"),
        ({"features": make_features(torch.int32)}, TypeError, "torch.int32"),
        ({"features": [*make_features()[:2], make_features(torch.float64)[2]]}, TypeError, "torch.float64"),
        ({"boxes": [torch.zeros(1, 4)]}, ValueError, "boxes of 1 images for features of 2 images"),
        ({"boxes": [torch.zeros(1, 5), torch.zeros(1, 4)]}, ValueError, r"\(1, 5\)"),
        ({"output_size": 0}, ValueError, r"output_size \(0, 0\)"),
        ({"output_size": (7, 7, 7)}, ValueError, r"\(7, 7, 7\)"),
        ({"sampling_ratio": -1}, ValueError, "sampling_ratio -1"),
    ],
)
def test_errors_name_the_input(change, error, words):
    arguments = {"features": make_features(), "boxes": make_boxes(), "output_size": 7, "scales": SCALES, **change}
    with pytest.raises(error, match=words):
        multilevel_roi_align(**arguments)


def test_registered_operators_by_name_and_keyword():
    """Exported programs store these names; renaming an operator or an argument would break them."""
    features, boxes, counts, *_ = operator_arguments("ordinary")
    settings = {"output_size": [2, 3], "scales": list(SCALES), "sampling_ratio": 0, "aligned": True}
    settings |= {"canonical_box_size": CANONICAL[0], "canonical_level": CANONICAL[1]}
    expected, gradients, grad = value_and_gradients(
        multilevel_roi_align, features, list(boxes.split(counts)), (2, 3), SCALES, 0, True, *CANONICAL
    )
    pooled = torch.ops.d2_maskrcnn.multilevel_roi_align(
        features=features, boxes=boxes, boxes_per_image=counts, **settings
    )
    assert torch.equal(pooled, expected)
    heights, widths = zip(*SIZES, strict=True)
    levels = torch.ops.d2_maskrcnn.multilevel_roi_align_backward(
        grad=grad, boxes=boxes, boxes_per_image=counts, heights=list(heights), widths=list(widths), **settings
    )
    assert all(torch.equal(*pair) for pair in zip(levels, gradients, strict=True))
