"""Open exported files with the runtime of their format, and call them with NumPy arrays."""

import contextlib
import inspect
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.errors import UserError, import_extra
from d2_maskrcnn.runtimes.metadata import METADATA_KEY, SUFFIXES

OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class Session(ABC):
    """An open file.

    Attributes:
        metadata: the JSON text that the file stores for this plugin; "" if another program wrote the file.
        device: where it runs.
        precisions: names of the precisions that the runtime can compute in, whatever the file's precision.
    """

    metadata: str
    device = torch.device("cpu")
    precisions: tuple[str, ...] = ("float32",)

    @abstractmethod
    def run(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """Return the file's outputs, in order. Args: images (N, C, H, W) uint8 or float32; sizes (N, 2) int64."""

    def set_precision(self, name: str) -> None:
        """Compute in one of :attr:`precisions` from now on."""
        assert name in self.precisions


class OnnxSession(Session):
    """An ONNX file in onnxruntime. It runs on the GPU if onnxruntime-gpu is installed and ``device`` is one."""

    def __init__(self, path: Path, device: torch.device) -> None:
        runtime = import_extra("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
            self.device = device
        self._session = runtime.InferenceSession(str(path), options, providers=providers)
        self.metadata = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")

    def run(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Session.run`."""
        return list(self._session.run(None, {"images": images, "sizes": sizes}))


class OpenVinoSession(Session):
    """An OpenVINO file. It computes in float32 unless :meth:`set_precision` chooses another precision."""

    precisions = tuple(OPENVINO_PRECISIONS)

    def __init__(self, path: Path, device: torch.device) -> None:
        self._openvino = import_extra("openvino", "openvino")
        self._model = self._openvino.Core().read_model(str(path))
        has_metadata = self._model.has_rt_info(METADATA_KEY)
        self.metadata = str(self._model.get_rt_info(METADATA_KEY).value) if has_metadata else ""
        self._compiled: Any = None
        self._precision = "float32"

    def run(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Session.run`."""
        if self._compiled is None:
            hints = {
                "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[self._precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            }
            self._compiled = self._openvino.Core().compile_model(self._model, "CPU", hints)
        # Results are views of the request's memory, which the next call writes to.
        return [np.array(each) for each in self._compiled((images, sizes)).values()]

    def set_precision(self, name: str) -> None:
        """See :meth:`Session.set_precision`."""
        if name != self._precision:
            self._precision, self._compiled = name, None


class TorchSession(Session):
    """A file of ``torch.export``; it uses torchvision's operators."""

    def __init__(self, path: Path, device: torch.device) -> None:
        import torchvision  # noqa: F401 - registers its operators

        extra = {METADATA_KEY: ""}
        program = torch.export.load(str(path), extra_files=extra)
        self.metadata = extra[METADATA_KEY]
        # The guards, which older versions don't have, refuse images whose coarsest feature level is a single cell.
        guards = "check_guards" in inspect.signature(program.module).parameters
        self._module = program.module(check_guards=False) if guards else program.module()

    def run(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Session.run`."""
        with torch.no_grad():
            outputs = self._module(torch.from_numpy(images), torch.from_numpy(sizes))
        return [each.numpy() for each in outputs]


SESSIONS: dict[str, type[Any]] = {"onnx": OnnxSession, "openvino": OpenVinoSession, "torch": TorchSession}


def open_session(path: str | Path, device: torch.device) -> Session:
    """Open an exported file with the runtime of its format.

    Args:
        device: used where the runtime supports it, the CPU otherwise.

    Raises:
        UserError: the file is missing or damaged, was not exported by this plugin, or its runtime is not installed.
    """
    with _readable(Path(path)):
        session: Session = SESSIONS[SUFFIXES[Path(path).suffix.lower()]](Path(path), device)
    return session


def read_metadata(path: str | Path) -> str:
    """Return the JSON text that an exported file stores for this plugin.

    Raises:
        UserError: see :func:`open_session`.
    """
    path = Path(path)
    with _readable(path):
        if path.suffix.lower() == ".pt2":  # an archive, whose graph takes seconds to load
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(f"extra/{METADATA_KEY}")]
                text = archive.read(names[0]).decode() if names else ""
        else:
            text = open_session(path, torch.device("cpu")).metadata
    if not text:
        raise UserError(f"{path}: not exported by d2_maskrcnn; expected a file that `d2-maskrcnn export` wrote.")
    return text


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report a file that the block cannot read as ``UserError``."""
    if not path.is_file():
        raise UserError(f"MODEL.WEIGHTS {path}: file not found; give an existing file.")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the runtimes raise errors of their own kinds for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be opened ({reason:.200}); export the model again.") from error
