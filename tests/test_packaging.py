"""The built package, installed into a folder of its own and used from an empty one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from d2_maskrcnn.config.named import config_names

SOURCES = ("d2_maskrcnn", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def run(*words, cwd, **env):
    result = subprocess.run(
        [str(word) for word in words], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(repo_dir, tmp_path_factory) -> Path:
    """The folder into which the wheel, built from the source distribution, is installed."""
    root = tmp_path_factory.mktemp("package")
    source = root / "source"
    source.mkdir()
    for name in SOURCES:
        if (repo_dir / name).is_dir():
            shutil.copytree(repo_dir / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(repo_dir / name, source)
    run(sys.executable, "-c", "from setuptools.build_meta import build_sdist as b; b('dist')", cwd=source)
    (archive,) = (source / "dist").glob("*.tar.gz")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "install", *options, "--target", root / "installed", archive, cwd=root)
    return root / "installed"


def test_help_of_the_installed_command(installed, tmp_path):
    command = [sys.executable, installed / "bin" / "d2-maskrcnn", "--help"]
    assert "predict" in run(*command, cwd=tmp_path, PYTHONPATH=str(installed))


def test_example_and_configs_by_name_in_an_empty_folder(installed, tmp_path):
    code = (
        "import d2_maskrcnn, importlib.metadata\nfrom d2_maskrcnn.cli.main import main\n"
        "assert d2_maskrcnn.engine_info().version == importlib.metadata.version('detectron2')\n"
        "assert main(['predict', '--example', '--output', 'out']) == 0\n"
        "import sys; assert not {'scipy', 'pandas', 'tensorboard'} & set(sys.modules), 'slow imports'\n"
        f"for name in {config_names()}: d2_maskrcnn.load_config(name)\n"
        "print(d2_maskrcnn.load_config('mrcnn_R101.yaml').MODEL.RESNETS.DEPTH, d2_maskrcnn.__file__)"
    )
    output = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert output.split() == ["101", str(installed / "d2_maskrcnn" / "__init__.py")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["shapes_1.jpg", "shapes_2.jpg"]
