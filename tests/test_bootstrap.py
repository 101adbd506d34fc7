"""The choice of the engine. Every case runs in a process of its own, since a process keeps its first choice."""

import os
import shutil
import subprocess
import sys

import pytest

import d2_maskrcnn
from d2_maskrcnn._bootstrap import EMBEDDED_ROOT

INFO = "import d2_maskrcnn; i = d2_maskrcnn.engine_info(); print(i.name, i.version, i.path, sep='|')"
FAKE_VERSION = "9.9.fake"


def run(code, repo_dir, engine=None, cwd=None, extra_path=""):
    env = {k: v for k, v in os.environ.items() if k != "D2_MASKRCNN_ENGINE"}
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(repo_dir), str(extra_path)) if p)
    if engine is not None:
        env["D2_MASKRCNN_ENGINE"] = engine
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def own_install(tmp_path):
    """A folder with an importable detectron2: a copy of the embedded one with another version."""
    package = tmp_path / "site" / "detectron2"
    shutil.copytree(EMBEDDED_ROOT / "detectron2", package, ignore=shutil.ignore_patterns("__pycache__"))
    init = package / "__init__.py"
    init.write_text(init.read_text() + f"\n__version__ = '{FAKE_VERSION}'\n")
    return package.parent


def test_engine_info_names_the_package_in_use():
    info = d2_maskrcnn.engine_info()
    assert info.as_dict() == {"name": info.name, "version": info.version, "path": info.path}
    assert info.name in str(info) and info.path in str(info)


def test_embedded_when_forced(repo_dir):
    result = run(INFO, repo_dir, engine="embedded")
    assert result.returncode == 0, result.stderr
    name, _, path = result.stdout.strip().split("|")
    assert (name, path) == ("embedded", str(EMBEDDED_ROOT / "detectron2"))


@pytest.mark.parametrize("engine", [None, "auto", "installed"])
def test_an_installed_one_is_preferred(repo_dir, own_install, engine):
    result = run(INFO, repo_dir, engine=engine, extra_path=own_install)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"installed|{FAKE_VERSION}|{own_install / 'detectron2'}"


def test_embedded_can_be_forced_over_an_installed_one(repo_dir, own_install):
    result = run(INFO, repo_dir, engine="embedded", extra_path=own_install)
    assert result.stdout.startswith("embedded|"), result.stderr


def test_import_errors_of_an_installed_one_are_shown(repo_dir, own_install):
    (own_install / "detectron2" / "config" / "__init__.py").write_text("raise ImportError('broken on purpose')\n")
    result = run(INFO + "; import detectron2.config", repo_dir, extra_path=own_install)
    assert result.returncode != 0
    assert "broken on purpose" in result.stderr


def test_a_plain_folder_is_not_an_installation(repo_dir, tmp_path):
    (tmp_path / "detectron2").mkdir()
    result = run(INFO, repo_dir, engine=None, cwd=tmp_path)
    has_real_one = subprocess.run(
        [sys.executable, "-c", "import detectron2"], cwd=os.path.sep, env={"PATH": os.environ["PATH"]}
    )
    expected = "installed|" if has_real_one.returncode == 0 else "embedded|"
    assert result.stdout.startswith(expected), result.stderr


def test_an_imported_engine_is_kept(repo_dir, own_install):
    result = run("import detectron2.config; " + INFO, repo_dir, extra_path=own_install)
    assert result.stdout.startswith("installed|"), result.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "import d2_maskrcnn; assert 'torch' not in sys.modules; import detectron2.engine",
        "import detectron2.modeling, d2_maskrcnn",
        "import d2_maskrcnn.modeling",
    ],
)
def test_components_are_registered(repo_dir, imports):
    code = (
        f"import sys; sys.path.append({str(EMBEDDED_ROOT)!r}); {imports}\n"
        "from detectron2.modeling import META_ARCH_REGISTRY as registry; assert 'MaskRCNN' in registry"
    )
    result = run(code, repo_dir)
    assert result.returncode == 0, result.stderr


def test_an_imported_engine_that_contradicts_the_variable(repo_dir, own_install):
    result = run("import detectron2.config; " + INFO, repo_dir, engine="embedded", extra_path=own_install)
    assert result.returncode != 0
    assert "put `import d2_maskrcnn` before" in result.stderr


def test_unknown_engine(repo_dir):
    result = run(INFO, repo_dir, engine="fastest")
    assert result.returncode != 0
    assert "D2_MASKRCNN_ENGINE='fastest'" in result.stderr and "auto, installed, embedded" in result.stderr


def test_installed_forced_without_an_installation(repo_dir):
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'etectron' not in str(f)]; import d2_maskrcnn"
    real = subprocess.run(
        [sys.executable, "-c", "import detectron2"], cwd=os.path.sep, env={"PATH": os.environ["PATH"]}
    )
    if real.returncode == 0:
        pytest.skip("a Detectron2 is installed here")
    result = run(code, repo_dir, engine="installed")
    assert result.returncode != 0
    assert "no Detectron2 is installed" in result.stderr


def test_spawned_workers_use_the_same_engine(repo_dir):
    code = (
        "import d2_maskrcnn, multiprocessing as mp\n"
        "if __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(d2_maskrcnn.engine_info).path)\n"
    )
    result = run(code, repo_dir, engine="embedded")
    assert result.stdout.strip() == str(EMBEDDED_ROOT / "detectron2"), result.stderr


def test_collect_env_names_the_engine(repo_dir):
    result = subprocess.run(
        [sys.executable, "-m", "d2_maskrcnn.collect_env"], cwd=repo_dir, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert str(d2_maskrcnn.engine_info()) in result.stdout
    assert "torch" in result.stdout.lower() and sys.version.split()[0] in result.stdout
