"""Run every notebook from top to bottom on small data."""

import http.server
import importlib.util
import json
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from detectron2.modeling import build_model

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat: pip install -e '.[notebooks]'")
nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient: pip install -e '.[notebooks]'")
pytest.importorskip("ipykernel", reason="notebooks need ipykernel: pip install -e '.[notebooks]'")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def execute(name):
    """Run a notebook in its own folder; return the text of its outputs and the number of images."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    shown = [output.get("data", {}) for output in outputs]
    return text, sum("image/png" in data or "image/jpeg" in data for data in shown)


@pytest.fixture
def small_model(repo_dir, tiny_opts, tmp_path, monkeypatch):
    """Set the notebooks' options to a model with random weights, which are also in a file."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = str(repo_dir / "configs" / "quickstart.yaml")
    cfg = load_config(config, tiny_opts)
    register_own_data(cfg)
    weights = tmp_path / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    monkeypatch.setenv("INSPECT_CONFIG", config)
    monkeypatch.setenv("INSPECT_OPTS", " ".join([*tiny_opts, "MODEL.WEIGHTS", str(weights)]))
    monkeypatch.setenv("INSPECT_WEIGHTS", str(weights))
    monkeypatch.setenv("INSPECT_OTHER", str(weights))
    monkeypatch.setenv("INSPECT_OUTPUT", str(tmp_path / "report"))
    return tmp_path


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_not_stored(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_step_is_explained(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    words = sum(len("".join(cell["source"]).split()) for cell in cells if cell["cell_type"] == "markdown")
    assert cells[0]["cell_type"] == "markdown" and words > 150


def test_inspect_data(small_model):
    text, images = execute("inspect_data")
    assert "12 images" in text and images == 5


def test_inspect_model(small_model):
    text, images = execute("inspect_model")
    assert "kept after NMS" in text and "TP" in text and images >= 14
    assert (small_model / "report" / "report.html").stat().st_size > 100_000


def test_inspect_weights(small_model):
    text, images = execute("inspect_weights")
    assert "unchanged: equal to" in text and "largest difference 0" in text and images >= 6


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Run the Colab notebook's first cell without the package in an empty folder; return the commands that it runs."""
    source = next(cell.source for cell in nbformat.read(NOTEBOOKS / "colab.ipynb", 4).cells if cell.cell_type == "code")
    commands = []

    def run(command, **_):
        commands.append(list(command))
        return subprocess.CompletedProcess(command, 0, "", "")

    def call():
        exec(compile(source, "colab.ipynb", "exec"), {})
        return commands

    folder = tmp_path / "content"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("COLAB_REPOSITORY", "COLAB_JUPYTER_IP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(subprocess, "run", run)
    return call


def test_colab_without_the_package_stops_with_one_line(install):
    with pytest.raises(Exception, match="Set REPOSITORY in this cell to the address") as error:
        install()
    assert error.value._render_traceback_() == [str(error.value)]


def test_colab_installs_a_repository(install, monkeypatch):
    monkeypatch.setenv("COLAB_REPOSITORY", "https://host/owner/name.git")
    clone, pip = install()
    assert clone[:2] == ["git", "clone"] and clone[-2] == "https://host/owner/name.git"
    assert pip[-1] == f"{clone[-1]}[demo]"


def test_colab_installs_the_checkout_around_it(install, tmp_path):
    (tmp_path / "d2_maskrcnn").mkdir()
    (tmp_path / "d2_maskrcnn" / "__init__.py").touch()
    assert [command[-1] for command in install()] == [f"{tmp_path}[demo]"]


@pytest.mark.parametrize("name", ["name-main.zip", "d2_maskrcnn-0.1.0-py3-none-any.whl"])
def test_colab_installs_an_uploaded_file(install, tmp_path, name):
    for file, member in (("balloon.zip", "balloon/a.jpg"), (name, "name-main/d2_maskrcnn/__init__.py")):
        with zipfile.ZipFile(tmp_path / "content" / file, "w") as archive:
            archive.writestr(member, "")
    assert [command[-1] for command in install()] == [f"{tmp_path / 'content' / name}[demo]"]


def test_colab_installs_the_repository_that_it_was_opened_from(install, monkeypatch):
    class Sessions(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            path = "fileId=https%3A%2F%2Fgithub.com%2Fowner%2Fname%2Fblob%2Fmain%2Fnotebooks%2Fcolab.ipynb"
            self.wfile.write(json.dumps([{"path": path}]).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Sessions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
        monkeypatch.setenv("KMP_TARGET_PORT", str(server.server_address[1]))
        clone, _ = install()
        server.shutdown()
    assert clone[-2] == "https://github.com/owner/name"


def test_colab(tmp_path, monkeypatch):
    """Training, evaluation, image, video and report, on four small images in VIA's format."""
    for split, names in (("train", "ab"), ("val", "cd")):
        folder = tmp_path / "via" / split
        folder.mkdir(parents=True)
        entries = {}
        for number, name in enumerate(names):
            image = Image.fromarray(np.full((48, 64, 3), 40 * number, np.uint8))
            ImageDraw.Draw(image).ellipse((10, 8, 40, 38), fill="red")
            image.save(folder / f"{name}.jpg")
            shape = {"name": "polygon", "all_points_x": [10, 25, 40, 25], "all_points_y": [23, 8, 23, 38]}
            regions = {"0": {"shape_attributes": shape, "region_attributes": {}}}
            entries[name] = {"filename": f"{name}.jpg", "regions": regions, "file_attributes": {}, "size": 1}
        (folder / "via_region_data.json").write_text(json.dumps(entries))
    small = {
        "MODEL.WEIGHTS": "''", "MODEL.DEVICE": "cpu", "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.NORM": "BN",
        "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.WIDTH_PER_GROUP": 4, "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16, "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.FPN.NORM": "''",
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.MAX_ITER": 2, "SOLVER.WARMUP_ITERS": 0, "DATALOADER.NUM_WORKERS": 0,
    }  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLAB_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("COLAB_SOURCE", str(tmp_path / "via"))
    monkeypatch.setenv("COLAB_OPTS", " ".join(f"{key} {value}" for key, value in small.items()))
    text, images = execute("colab")
    assert "segm/AP50" in text and "4 images, 4 annotations" in text and images >= 3
    for name in ("annotated.mp4", "inspection/report.html", "model/model_best.pth"):
        assert (tmp_path / "work" / name).stat().st_size > 0
