"""Shared by all tests: the engine is chosen before any test file says ``from detectron2 ...``."""

from pathlib import Path

import pytest
import torch

import d2_maskrcnn  # noqa: F401

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """One thread for each pytest-xdist worker, so that the workers do not fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real pictures and reference answers that lie beside the checkout on some machines only."""
    path = REPO.parent / "shared"
    if not (path / "reference").is_dir():
        pytest.skip("no ../shared beside the checkout")
    return path
