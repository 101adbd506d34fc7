"""Describe the machine for a bug report: ``python -m detectron2.utils.collect_env``."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections import defaultdict

import torch
from tabulate import tabulate

from detectron2._names import lookup

__all__ = ["collect_env_info"]

# Name on PyPI -> module whose location is shown.
_LIBRARIES = {
    "numpy": "numpy",
    "torchvision": "torchvision",
    "pillow": "PIL",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "pycocotools": "pycocotools",
    "faster-coco-eval": "faster_coco_eval",
}


def collect_env_info() -> str:
    """Return a table of platform, Python, PyTorch, GPUs and libraries."""
    import detectron2

    rows: list[tuple[str, object]] = [
        ("sys.platform", sys.platform),
        ("Platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", torch.version.debug),
        ("CPU threads of PyTorch", torch.get_num_threads()),
        *_gpu_rows(),
        *((name, _library(name, module)) for name, module in _LIBRARIES.items()),
        ("cv2", _opencv()),
    ]
    return tabulate(rows, disable_numparse=True)


def _gpu_rows() -> list[tuple[str, object]]:
    if not torch.cuda.is_available():
        return [("GPU available", "No: torch.cuda.is_available() is False")]
    rows: list[tuple[str, object]] = [("GPU available", "Yes")]
    same: dict[str, list[str]] = defaultdict(list)
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        same[f"{torch.cuda.get_device_name(index)} (arch={major}.{minor})"].append(str(index))
    rows += [(f"GPU {','.join(indices)}", name) for name, indices in same.items()]
    rows += [("CUDA of PyTorch", torch.version.cuda), ("cuDNN", torch.backends.cudnn.version())]
    return rows


def _library(distribution: str, module: str) -> str:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    spec = importlib.util.find_spec(module)
    return f"{version} @{os.path.dirname(spec.origin)}" if spec is not None and spec.origin else version


def _opencv() -> str:
    # Several distributions (headless and not) contain this module, so its own version is read.
    if importlib.util.find_spec("cv2") is None:
        return "not installed"
    return importlib.import_module("cv2").__version__


if __name__ == "__main__":
    print(collect_env_info())

__getattr__ = lookup(__name__)
