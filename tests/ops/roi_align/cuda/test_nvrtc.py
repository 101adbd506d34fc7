import os
import sys

import pytest
import torch

from d2_maskrcnn.ops.roi_align.cuda import kernels, nvrtc

ARCHITECTURES = (75, 80, 90, 100)
TYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
SMALL = 'extern "C" __global__ void fill(float* out) { out[threadIdx.x] = VALUE; }'


@pytest.fixture
def compiler():
    """Skip the test without NVRTC, which PyTorch's CPU builds do not include."""
    try:
        nvrtc.nvrtc_version()
    except nvrtc.KernelError as error:
        pytest.skip(f"no NVRTC: {error}")


@pytest.fixture
def small_source(tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "fill.cu"
    source.write_text(SMALL)
    return source


def fail_to_compile(*args):
    raise AssertionError("compiled although it is in the cache")


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("scalars", TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_a_warning(compiler, architecture, scalars, part):
    if architecture not in nvrtc.supported_architectures():
        pytest.skip(f"NVRTC {nvrtc.nvrtc_version()} does not support sm_{architecture}")
    options = kernels.compile_options(scalars, TYPES[scalars])
    cubin, log = nvrtc.compile_cubin(kernels.FOLDER / f"{part}.cu", kernels.HEADERS, architecture, options)
    assert log == ""
    assert cubin.startswith(b"\x7fELF")
    assert all(f"{part}_{kind}".encode() in cubin for kind in ("packed", "strided"))


def test_float64_boxes_with_float32_features_compile_too(compiler):
    options = kernels.compile_options(torch.float32, torch.float64)
    for part in ("forward", "backward"):
        _, log = nvrtc.compile_cubin(kernels.FOLDER / f"{part}.cu", kernels.HEADERS, 90, options)
        assert log == ""


def test_compiler_messages(small_source):
    with pytest.raises(nvrtc.KernelError, match=r'fill.cu does not compile for sm_90: .*\n.*"VALUE" is undefined'):
        nvrtc.compile_cubin(small_source, [], 90, [])
    small_source.write_text(SMALL.replace("out[", "int unused; out["))
    _, log = nvrtc.compile_cubin(small_source, [], 90, ["-DVALUE=1"])
    assert '"unused" was declared but never referenced' in log


def test_interned_bytes_are_not_written_to(small_source):
    # An empty log has one byte, and CPython shares one-byte objects.
    nvrtc.compile_cubin(small_source, [], 90, ["-DVALUE=1"])
    assert [(bytes([value]) * 1)[0] for value in range(256)] == list(range(256))


def test_cached_result_is_used(small_source, monkeypatch):
    first = nvrtc.cached_cubin(small_source, [], 90, ["-DVALUE=1"])
    (entry,) = nvrtc.cache_folder().iterdir()
    assert entry.name.startswith("fill-sm_90-")
    monkeypatch.setattr(nvrtc, "compile_cubin", fail_to_compile)
    assert nvrtc.cached_cubin(small_source, [], 90, ["-DVALUE=1"]) == first


@pytest.mark.parametrize("change", ["source", "header", "architecture", "options", "version"])
def test_key_depends_on_every_input(small_source, monkeypatch, change):
    header = small_source.with_name("header.cuh")
    header.write_text("// one")
    architecture, options = 90, ["-DVALUE=1"]
    nvrtc.cached_cubin(small_source, [header], architecture, options)
    if change == "source":
        small_source.write_text(SMALL + "\n")
    elif change == "header":
        header.write_text("// two")
    elif change == "architecture":
        architecture = 80
    elif change == "options":
        options = ["-DVALUE=2"]
    else:
        monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: (99, 9))
    nvrtc.cached_cubin(small_source, [header], architecture, options)
    assert len(list(nvrtc.cache_folder().iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "foreign", "writable by others"])
def test_damaged_entry_is_compiled_again(small_source, damage):
    first = nvrtc.cached_cubin(small_source, [], 90, ["-DVALUE=1"])
    (entry,) = nvrtc.cache_folder().iterdir()
    whole = entry.read_bytes()
    changed = bytes([whole[-1] ^ 1])
    contents = {"empty": b"", "cut": whole[:-10], "changed": whole[:-1] + changed, "foreign": b"\x7fELF" + whole}
    entry.write_bytes(contents.get(damage, whole))
    if damage == "writable by others":
        entry.chmod(0o666)
    assert nvrtc.read_entry(entry) is None
    assert nvrtc.cached_cubin(small_source, [], 90, ["-DVALUE=1"]) == first
    assert nvrtc.read_entry(entry) == first
    assert [path.name for path in nvrtc.cache_folder().iterdir()] == [entry.name]


def test_without_a_writable_cache(small_source, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_source))  # a file, not a folder
    assert nvrtc.cached_cubin(small_source, [], 90, ["-DVALUE=1"]).startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("variable", "root"), [("/some/where", "/some/where"), ("", "~/.cache"), ("relative", "~/.cache")]
)
def test_cache_folder(monkeypatch, variable, root):
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert str(nvrtc.cache_folder()) == os.path.expanduser(root) + "/d2_maskrcnn/kernels"


@pytest.mark.parametrize("name", ["driver", "nvrtc"])
def test_missing_bindings(monkeypatch, name):
    monkeypatch.setitem(sys.modules, f"cuda.bindings.{name}", None)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    with pytest.raises(nvrtc.KernelError, match=r'cuda-bindings cannot be imported .*"cuda-bindings==12\.\*"'):
        nvrtc.import_bindings(name)


def test_missing_library():
    def function():
        raise RuntimeError("Failed to dlopen libnvrtc.so")

    with pytest.raises(nvrtc.KernelError, match=r"function: Failed to dlopen libnvrtc\.so"):
        nvrtc.call(function)
