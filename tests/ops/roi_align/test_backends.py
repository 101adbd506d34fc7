import logging
import warnings

import pytest
import torch
from roi_align_cases import SCALES, make_boxes, make_features

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.ops import multilevel_roi_align
from d2_maskrcnn.ops.roi_align import backends
from d2_maskrcnn.ops.roi_align.cuda import kernels, nvrtc, self_check

ON_FIRST_GPU = (torch.device("cuda", 0), torch.float32, torch.float32)


def test_forced_backends(monkeypatch):
    features, boxes = make_features(), make_boxes("ordinary")
    results = {}
    for choice in ("auto", "portable", "torchvision"):
        monkeypatch.setenv("D2_MASKRCNN_ROI_ALIGN", choice)
        results[choice] = multilevel_roi_align(features, boxes, 7, SCALES)
    assert torch.equal(results["auto"], results["portable"])
    torch.testing.assert_close(results["torchvision"], results["portable"], rtol=1e-5, atol=1e-5)
    monkeypatch.setenv("D2_MASKRCNN_ROI_ALIGN", "cuda")
    with pytest.raises(UserError, match=r"D2_MASKRCNN_ROI_ALIGN=cuda: .*cpu"):
        multilevel_roi_align(features, boxes, 7, SCALES)
    monkeypatch.setenv("D2_MASKRCNN_ROI_ALIGN", "fastest")
    with pytest.raises(UserError, match="fastest: expected one of auto, portable, cuda, torchvision"):
        multilevel_roi_align(features, boxes, 7, SCALES)


@pytest.fixture
def fresh_caches():
    caches = (backends.cuda_problem, kernels.load_kernels, backends._report_once)
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.fixture
def gpu_build(monkeypatch, fresh_caches):
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_unavailable_kernels_are_reported_once(gpu_build, monkeypatch):
    def no_compiler(*args):
        raise nvrtc.KernelError("NVRTC is missing")

    monkeypatch.setattr(kernels, "load_kernels", no_compiler)
    with pytest.warns(UserWarning, match="more slowly and with the same results: NVRTC is missing"):
        assert backends.choose_backend(*ON_FIRST_GPU) is backends.PORTABLE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.choose_backend(*ON_FIRST_GPU) is backends.PORTABLE
    monkeypatch.setenv("D2_MASKRCNN_ROI_ALIGN", "cuda")
    with pytest.raises(UserError, match="NVRTC is missing"):
        backends.choose_backend(*ON_FIRST_GPU)


def test_wrong_kernels_are_an_error_in_the_log(gpu_build, monkeypatch, caplog):
    def wrong(*args):
        raise self_check.WrongResultError("results differ")

    monkeypatch.setattr(kernels, "load_kernels", lambda *args: None)
    monkeypatch.setattr(self_check, "check_kernels", wrong)
    with caplog.at_level(logging.ERROR):
        assert backends.choose_backend(*ON_FIRST_GPU) is backends.PORTABLE
        assert backends.choose_backend(*ON_FIRST_GPU) is backends.PORTABLE
    assert len(caplog.records) == 1 and "results differ" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_auto_takes_the_kernels_on_a_gpu(fresh_caches, monkeypatch, dtype):
    monkeypatch.delenv("D2_MASKRCNN_ROI_ALIGN", raising=False)
    coords = torch.float64 if dtype == torch.float64 else torch.float32
    assert backends.choose_backend(torch.device("cuda", 0), dtype, coords) is backends.CUDA
