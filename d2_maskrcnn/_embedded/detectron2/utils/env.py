"""Environment of the process: version of PyTorch, random seeds, settings of libraries."""

import importlib.util
import logging
import os
import random
import re
from typing import Any

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "fixup_module_metadata", "seed_all_rng", "setup_environment"]

# (major, minor)
_major, _minor = re.findall(r"\d+", torch.__version__)[:2]
TORCH_VERSION: tuple[int, int] = (int(_major), int(_minor))

_environment_is_set_up = False


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of NumPy, PyTorch (CPU and GPUs) and Python, and the hashes of child processes.

    Args:
        seed: non-negative; None for a random one, which is logged.

    Raises:
        ValueError: ``seed`` is negative.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
        logging.getLogger(__name__).info("Using a random seed: %d", seed)
    if seed < 0:
        raise ValueError(f"A seed must not be negative, got {seed}")
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed % 2**32)


def setup_environment() -> None:
    """Apply the settings of libraries that a training needs. Further calls have no effect."""
    global _environment_is_set_up
    if _environment_is_set_up:
        return
    _environment_is_set_up = True
    if importlib.util.find_spec("cv2") is not None:
        _keep_opencv_to_one_thread()


def fixup_module_metadata(module_name: str, namespace: dict[str, Any], keys: list[str] | None = None) -> None:
    """Set ``__module__`` of the public objects of a namespace that are defined below ``module_name`` to
    ``module_name``.
    """
    for key in namespace if keys is None else keys:
        found = namespace.get(key)
        if not key.startswith("_") and str(getattr(found, "__module__", "")).startswith(f"{module_name}."):
            found.__module__ = module_name


def _keep_opencv_to_one_thread() -> None:
    # OpenCV's thread pool and OpenCL do not survive a fork: data loaders, which fork, would hang.
    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    import cv2

    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
