import pytest


@pytest.fixture
def folder(tmp_path):
    """A folder that does not exist yet; the first save creates it."""
    return tmp_path / "output" / "run"
