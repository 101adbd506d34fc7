"""The CUDA kernels on a GPU, if there is one, and compiled as C++ on the host (``emulator.cpp``)."""

import pytest
import torch
from roi_align_cases import (
    CANONICAL,
    ORDINARY,
    SCALES,
    TOLERANCE,
    assert_equals_reference,
    make_boxes,
    make_features,
    make_finite_boxes,
    value_and_gradients,
)

from d2_maskrcnn.ops import multilevel_roi_align
from d2_maskrcnn.ops.roi_align import cpu
from d2_maskrcnn.ops.roi_align.cuda import kernels, nvrtc
from d2_maskrcnn.ops.roi_align.levels import PoolingSpec, coordinate_dtype

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("kind", ["empty", "ordinary", "borders", "outside", "degenerate"])
def test_emulated_kernels_equal_the_reference(emulated, kind, sampling_ratio):
    features = make_features(channels=8)
    assert_equals_reference(features, make_finite_boxes(kind), (2, 3), SCALES, sampling_ratio, True, *CANONICAL)
    assert kind == "empty" or set(emulated.launched) == {"forward_packed", "backward_packed"}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_emulated_dtypes_and_memory_formats(emulated, dtype, channels_last):
    features = make_features(dtype, channels=16, channels_last=channels_last)
    assert_equals_reference(features, make_boxes("ordinary"), (2, 2), SCALES, 0, False, *CANONICAL)
    assert "forward_packed" in emulated.launched if channels_last else "forward_strided" in emulated.launched


@pytest.mark.parametrize("sampling_ratio", [1, 9, 40])
def test_emulated_sampling_ratios(emulated, sampling_ratio):
    features, boxes = make_features(channels=4), make_boxes("ordinary")
    args = ((1, 2), SCALES, sampling_ratio, True, *CANONICAL)
    assert_equals_reference(features, [boxes[0][:2], boxes[1][:2]], *args)


def test_emulated_kernels_with_any_number_of_channels_and_bins(emulated):
    boxes = [torch.tensor(ORDINARY[:1]), torch.tensor(ORDINARY[1:3])]
    assert_equals_reference(make_features(channels=37), boxes, (1, 40), SCALES, 2, True, *CANONICAL)
    assert set(emulated.launched) == {"forward_strided", "backward_strided"}


def test_emulated_kernels_with_levels_of_one_cell(emulated):
    features = make_features(sizes=((1, 1), (1, 20), (6, 1)), channels=4)
    assert_equals_reference(features, make_finite_boxes("ordinary"), (2, 2), SCALES, 0, True, *CANONICAL)


def test_emulated_kernels_with_many_boxes_on_one_tile(emulated):
    # More than a block lists at once, so that the order over several lists matters as well.
    boxes = torch.rand((600, 4), generator=torch.Generator().manual_seed(0)) * 20
    boxes[:, 2:] += boxes[:, :2]
    features, args = make_features(images=1, channels=4), (1, SCALES, 1, True, *CANONICAL)
    pooled, gradients, grad = value_and_gradients(multilevel_roi_align, features, [boxes], *args)
    spec = PoolingSpec((1, 1), SCALES, 1, True, *CANONICAL)
    torch.testing.assert_close(pooled, cpu.pool(features, boxes, [600], spec), rtol=1e-5, atol=1e-5)
    expected = cpu.gradients(grad, [f.shape for f in features], boxes, [600], spec)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_emulated_huge_and_non_finite_boxes_are_cheap(emulated):
    features = make_features(channels=4)
    huge = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [-3e38, -3e38, 3e38, 3e38], [-1e7, 3, 1e7, 9]])
    for sampling_ratio in (0, 2):
        args = ([huge, make_boxes("non-finite")[0]], 2, SCALES, sampling_ratio, True, *CANONICAL)
        pooled, _, _ = value_and_gradients(multilevel_roi_align, features, *args)
        assert pooled.abs().max() < 1e-4


def test_emulated_launches_of_many_images(emulated, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_IMAGES", 64)
    features = make_features(images=67, channels=4, sizes=((6, 8), (3, 4), (2, 2)))
    boxes = [torch.tensor(ORDINARY[:1]) * 0.2 for _ in range(67)]
    assert_equals_reference(features, boxes, (1, 1), SCALES, 1, True, *CANONICAL)
    assert emulated.launched == ["forward_packed"] * 2 + ["backward_packed"] * 2


def test_too_many_levels(emulated):
    features = [torch.zeros(1, 4, 8, 8)] * (kernels.MAX_LEVELS + 1)
    with pytest.raises(ValueError, match="17 feature levels: the CUDA kernels take at most 16"):
        multilevel_roi_align(features, [torch.zeros(1, 4)], 7, [0.25] * 17)


def test_constants_equal_the_sources():
    text = "\n".join(path.read_text() for path in kernels.FOLDER.glob("*.cu*"))
    for name in ("MAX_LEVELS", "MAX_IMAGES", "WARP", "PACK_BYTES", "TILE", "FORWARD_WARPS", "BINS_PER_BLOCK"):
        assert f"#define {name} {getattr(kernels, name)}" in text


def test_build_without_cuda_has_no_kernels(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(nvrtc.KernelError, match="this PyTorch is not built for CUDA"):
        kernels.check_device(torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("supported", "capability", "architecture"),
    [([75, 80, 86, 90], (8, 0), 80), ([75, 80, 86, 90], (8, 9), 86), ([90, 100, 103], (10, 3), 103)],
)
def test_architecture(monkeypatch, supported, capability, architecture):
    monkeypatch.setattr(kernels, "supported_architectures", lambda: supported)
    assert kernels.find_architecture(*capability) == architecture


def test_gpu_unknown_to_the_compiler(monkeypatch):
    monkeypatch.setattr(kernels, "supported_architectures", lambda: [75, 80])
    monkeypatch.setattr(kernels, "nvrtc_version", lambda: (13, 2))
    with pytest.raises(nvrtc.KernelError, match=r"NVRTC 13\.2 does not compile for GPUs of compute capability 7\.0"):
        kernels.find_architecture(7, 0)


def on_gpu(tensors):
    return [tensor.cuda() for tensor in tensors]


def assert_gpu_equals_cpu(features, boxes, *args):
    """Compare values and gradients with the CPU, and the bits with those of a second run.

    Half types are compared with float32 features. Both sides have the same type of coordinates, because a sample at
    exactly -1 can fall on the other side in float64. Gradients are sums over many boxes, so their rounding errors are
    relative to the largest value.
    """
    grad = torch.randn(sum(map(len, boxes)), features[0].shape[1], *args[0]).to(features[0].dtype)
    runs = [
        value_and_gradients(multilevel_roi_align, on_gpu(features), on_gpu(boxes), *args, grad=grad.cuda())
        for _ in range(2)
    ]
    (pooled, gradients, _), (pooled_again, gradients_again, _) = runs
    assert torch.equal(pooled, pooled_again)
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_again, strict=True))
    exact = [feature.to(coordinate_dtype(feature)) for feature in features]
    expected, expected_gradients, _ = value_and_gradients(multilevel_roi_align, exact, boxes, *args, grad=grad)
    tolerance = TOLERANCE[features[0].dtype]
    for result, reference in zip([pooled, *gradients], [expected, *expected_gradients], strict=True):
        largest = max(1.0, float(reference.abs().max()))
        torch.testing.assert_close(
            result.cpu().to(reference.dtype), reference, rtol=tolerance, atol=tolerance * largest
        )


@ON_GPU
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 9])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_on_a_gpu(monkeypatch, dtype, channels_last, sampling_ratio, portable):
    if portable:
        monkeypatch.setenv("D2_MASKRCNN_ROI_ALIGN", "portable")
    for channels in (3, 64, 256):
        features = make_features(dtype, channels=channels, channels_last=channels_last)
        assert_gpu_equals_cpu(features, make_finite_boxes(), (7, 7), SCALES, sampling_ratio, True, *CANONICAL)


@ON_GPU
def test_many_boxes_on_a_gpu():
    boxes = [torch.rand(1000, 4).sort(dim=1).values * 160 for _ in range(2)]
    assert_gpu_equals_cpu(make_features(channels=256), boxes, (7, 7), SCALES, 0, True, *CANONICAL)


@ON_GPU
def test_current_stream_is_used(monkeypatch):
    monkeypatch.setenv("D2_MASKRCNN_ROI_ALIGN", "cuda")
    features, boxes = on_gpu(make_features(channels=64)), on_gpu(make_boxes("ordinary"))
    expected = multilevel_roi_align(features, boxes, 7, SCALES)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        doubled = [feature * 2 for feature in features]
        pooled = multilevel_roi_align(doubled, boxes, 7, SCALES)
    stream.synchronize()
    torch.testing.assert_close(pooled, expected * 2)


@ON_GPU
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_on_a_gpu(requires_grad):
    features = [feature.requires_grad_(requires_grad) for feature in on_gpu(make_features())]
    boxes = on_gpu(make_boxes("ordinary"))
    settings = ([2, 3], list(SCALES), 0, True, *CANONICAL)
    arguments = (features, torch.cat(boxes), [len(b) for b in boxes], *settings)
    torch.library.opcheck(torch.ops.d2_maskrcnn.multilevel_roi_align.default, arguments)
