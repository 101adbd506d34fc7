"""The version of PyTorch."""

from detectron2.utils.testing import min_torch_version

__all__ = ["min_torch_version"]
