"""Compile CUDA C++ at run time with NVRTC, which PyTorch's CUDA wheels include, and cache the results on disk.

This needs no nvcc, no host compiler and no CUDA headers; compiling needs no GPU either.
"""

import hashlib
import importlib
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

MAGIC = b"d2_maskrcnn kernel 1\n"


class KernelError(RuntimeError):
    """Our CUDA kernels cannot be compiled, loaded or started."""


def import_bindings(name: str) -> Any:
    """Import the module ``driver`` or ``nvrtc`` of cuda-bindings.

    Raises:
        KernelError: the package is not installed.
    """
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise KernelError(
            f"cuda-bindings cannot be imported ({error}); older PyTorch does not install it: {_install_command()}"
        ) from error


def _install_command() -> str:
    major = (torch.version.cuda or "").partition(".")[0]
    return f'pip install "cuda-bindings=={major}.*"' if major else "pip install cuda-bindings"


def call(function: Any, *args: Any) -> Any:
    """Call a function of cuda-bindings and return its value, or a tuple of its values.

    Raises:
        KernelError: it reports an error, or its library cannot be loaded.
    """
    try:
        status, *values = function(*args)
    except RuntimeError as error:  # how cuda-bindings reports a missing library
        raise KernelError(f"{function.__name__}: {error}") from error
    if int(status) != 0:
        raise KernelError(f"{function.__name__} failed: {status!s}")
    return values[0] if len(values) == 1 else tuple(values)


def nvrtc_version() -> tuple[int, int]:
    """Return the version of the NVRTC library in use."""
    major, minor = call(import_bindings("nvrtc").nvrtcVersion)
    return major, minor


def supported_architectures() -> list[int]:
    """Return the compute capabilities that NVRTC compiles for, as 10 * major + minor."""
    return list(call(import_bindings("nvrtc").nvrtcGetSupportedArchs))


def compile_cubin(
    source: Path, headers: Sequence[Path], architecture: int, options: Sequence[str]
) -> tuple[bytes, str]:
    """Compile one file for ``sm_<architecture>``.

    Returns:
        The cubin and the compiler's warnings (empty if none).

    Raises:
        KernelError: it does not compile; the message includes the compiler's.
    """
    nvrtc = import_bindings("nvrtc")
    texts = [header.read_bytes() for header in headers]
    names = [header.name.encode() for header in headers]
    program = call(nvrtc.nvrtcCreateProgram, source.read_bytes(), source.name.encode(), len(texts), texts, names)
    try:
        arguments = [f"--gpu-architecture=sm_{architecture}".encode(), *(option.encode() for option in options)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        log = (
            _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
            .rstrip(b"\0\n")
            .decode(errors="replace")
        )
        if int(status) != 0:
            raise KernelError(f"{source.name} does not compile for sm_{architecture}: {status!s}\n{log}")
        return _text(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN), log
    finally:
        call(nvrtc.nvrtcDestroyProgram, program)


def _text(program: Any, get_size: Any, get: Any) -> bytes:
    text = bytearray(call(get_size, program))  # not bytes, of which the interpreter shares short ones
    call(get, program, text)
    return bytes(text)


def cached_cubin(source: Path, headers: Sequence[Path], architecture: int, options: Sequence[str]) -> bytes:
    """Compile one file, or read the result from the cache.

    An entry is verified before it is used; one that is damaged, or that another user could have written, is compiled
    again. If the cache cannot be written, every process compiles.
    """
    entry = cache_entry(source, headers, architecture, options)
    cubin = read_entry(entry)
    if cubin is None:
        cubin, _ = compile_cubin(source, headers, architecture, options)
        write_entry(entry, cubin)
    return cubin


def cache_entry(source: Path, headers: Sequence[Path], architecture: int, options: Sequence[str]) -> Path:
    """Return the path of a cubin in the cache; its name depends on sources, options, architecture and NVRTC version."""
    parts = [path.name.encode() + b"\0" + path.read_bytes() for path in (source, *headers)]
    parts += [repr((architecture, tuple(options), nvrtc_version())).encode()]
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return cache_folder() / f"{source.stem}-sm_{architecture}-{key[:32]}.cubin"


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/d2_maskrcnn/kernels``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "d2_maskrcnn" / "kernels"


def read_entry(path: Path) -> bytes | None:
    """Return the content of a cache entry; None if it is missing, damaged, or writable by other users."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError:
        return None
    if not _only_ours(status):
        return None
    digest, payload = content[len(MAGIC) : len(MAGIC) + 32], content[len(MAGIC) + 32 :]
    return payload if content.startswith(MAGIC) and hashlib.sha256(payload).digest() == digest else None


def _only_ours(status: os.stat_result) -> bool:
    getuid = getattr(os, "getuid", None)  # not on Windows, where the cache is in the user's own profile
    if getuid is None:
        return True
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(status.st_mode) and status.st_uid == getuid() and not shared


def write_entry(path: Path, payload: bytes) -> None:
    """Write a cache entry atomically; do nothing if the folder is not writable."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")  # mode 0600
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
