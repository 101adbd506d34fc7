"""Emulation of the CUDA kernels on machines without a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from d2_maskrcnn.ops.roi_align import backends
from d2_maskrcnn.ops.roi_align.cuda import kernels

COMPILER = shutil.which("c++")


class Emulation:
    """Run our kernels as host code: replace only the loading and launching of the CUDA backend."""

    def __init__(self, folder):
        self.folder = folder
        self.libraries = {}
        self.launched = []

    def load_kernels(self, device_index, scalars, coords):
        parts = {part: self.build(part, scalars, coords) for part in ("forward", "backward")}
        return kernels.Kernels(*((parts[name.split("_")[0]], name) for name in kernels.Kernels._fields))

    def build(self, part, scalars, coords):
        path = self.folder / f"{part}-{scalars}-{coords}.so"
        if path not in self.libraries:
            macros = [option for option in kernels.compile_options(scalars, coords) if option.startswith("-D")]
            flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-w"]
            source = Path(__file__).with_name("emulator.cpp")
            paths = [f"-I{kernels.FOLDER}", f'-DKERNEL_FILE="{part}.cu"', str(source), "-o", str(path)]
            subprocess.run([COMPILER, *flags, *macros, *paths], check=True)
            self.libraries[path] = ctypes.CDLL(str(path))
        return self.libraries[path]

    def launch(self, kernel, blocks, threads, params, device):
        library, name = kernel
        self.launched.append(name)
        function = ctypes.cast(getattr(library, name), ctypes.c_void_p)
        deadlock = library.emulate(function, *map(ctypes.c_uint, (*blocks, threads)), ctypes.byref(params))
        assert not deadlock, f"deadlock in a block of {name}"


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return Emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def emulated(emulation, monkeypatch):
    """Run operator calls on CPU tensors with the emulated kernels."""
    emulation.launched.clear()
    monkeypatch.setenv("D2_MASKRCNN_ROI_ALIGN", "cuda")
    monkeypatch.setattr(backends, "cuda_problem", lambda *args: None)
    monkeypatch.setattr(kernels, "load_kernels", emulation.load_kernels)
    monkeypatch.setattr(kernels, "launch", emulation.launch)
    return emulation
