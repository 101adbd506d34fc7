import pytest
import torch

from d2_maskrcnn.ops.roi_align.cuda import kernels, nvrtc, self_check

CPU = torch.device("cpu")
TYPES = [(scalars, torch.float32) for scalars in (torch.float32, torch.bfloat16, torch.float16)]
TYPES += [(torch.float64, torch.float64), (torch.float32, torch.float64)]


@pytest.mark.parametrize(("scalars", "coords"), TYPES)
def test_emulated_kernels_pass(emulated, scalars, coords):
    self_check.compare_with_portable(CPU, scalars, coords)
    assert set(emulated.launched) == set(kernels.Kernels._fields)


@pytest.mark.parametrize("broken", kernels.Kernels._fields)
def test_a_kernel_that_writes_nothing_fails(emulated, monkeypatch, broken):
    def launch(kernel, *args):
        if kernel[1] != broken:
            emulated.launch(kernel, *args)

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    with pytest.raises(self_check.WrongResultError, match=r"torch\.float32 differ from the portable path by up to"):
        self_check.compare_with_portable(CPU, torch.float32, torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_result_is_cached_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = []
    monkeypatch.setattr(self_check, "compare_with_portable", lambda *args: runs.append(args))
    for _ in range(2):
        self_check.check_kernels(torch.device("cuda", 0), torch.float32, torch.float32)
    assert len(runs) == 1 and len(list(nvrtc.cache_folder().glob("check-*"))) == 1
