"""The inspection program, from its command line to a page that a browser displays without errors."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from d2_maskrcnn import example
from d2_maskrcnn.cli.main import main
from d2_maskrcnn.inspection import Report, inspect_weights, write_report
from d2_maskrcnn.inspection.activations import inspect_activations
from d2_maskrcnn.inspection.anchors import inspect_anchors
from d2_maskrcnn.inspection.report import as_dict

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def made(model, config_file, small_opts, record, repo_dir, tmp_path_factory):
    """Folder of a complete report, written by the program in a new process."""
    folder = tmp_path_factory.mktemp("made")
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    words = [
        "--config-file", config_file, "--input", record["file_name"], "--output", folder / "report", "--samples", "2",
        "--score-threshold", "0.2", "--opts", *small_opts, "MODEL.WEIGHTS", folder / "model.pth",
    ]  # fmt: skip
    command = [sys.executable, "-m", "d2_maskrcnn.inspection", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=repo_dir)
    assert result.returncode == 0, result.stderr
    return folder / "report"


def test_json_has_the_numbers(made, observation):
    numbers = json.loads((made / "report.json").read_text())
    image = numbers["images"][0]
    assert image["has_ground_truth"] and image["name"] == observation.name
    anchors = inspect_anchors(observation)
    assert [level["anchors"] for level in image["anchors"]["levels"]] == [level.anchors for level in anchors.levels]
    assert [step["count"] for step in image["anchors"]["steps"]] == [step.count for step in anchors.steps]
    assert [step["recall"] for step in image["anchors"]["steps"]] == [
        {k: pytest.approx(v) for k, v in step.recall.items()} for step in anchors.steps
    ]
    layers = {layer.name: layer for layer in inspect_activations(observation)}
    assert {layer["name"]: layer["mean"] for layer in image["activations"]} == {
        name: pytest.approx(layer.mean, rel=1e-4, abs=1e-6) for name, layer in layers.items()
    }
    assert numbers["data"]["images"] == 12 and len(numbers["weights"]["tensors"]) > 100
    assert set(image["losses"]) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


def test_figures_are_png(made):
    files = list((made / "figures").iterdir())
    assert len(files) > 20
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_page_needs_no_other_files(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert "http://" not in page and "https://" not in page
    identities = re.findall(r'\bid="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(identities)
    assert len(page) < 15e6


PROBE = """<script>
// The event "load" waits for all images requested before it, so each is then either complete or broken.
const images = [...document.images];
const drawn = [...document.querySelectorAll("image")].map((image) => {
  const copy = new Image();
  copy.src = image.getAttribute("href");
  return copy;
});
window.addEventListener("load", () => {
  const viewer = document.querySelector(".viewer");
  const layer = viewer.querySelector("input[data-layer]"), group = viewer.querySelector("g[data-layer]");
  const before = group.style.display;
  layer.click();
  const after = group.style.display;
  const svg = viewer.querySelector(".canvas svg"), whole = svg.getAttribute("viewBox");
  viewer.querySelector(".canvas").dispatchEvent(new KeyboardEvent("keydown", { key: "+" }));
  const zoomed = svg.getAttribute("viewBox");
  viewer.querySelector(".canvas").dispatchEvent(new KeyboardEvent("keydown", { key: "0" }));
  document.querySelector(".enlarge").click();
  const open = document.querySelector("dialog").open;
  document.querySelector("dialog").close();
  document.querySelector(".theme").click();
  const result = {
    images: images.length, broken: images.filter((image) => !image.complete || !image.naturalWidth).length,
    drawn: drawn.length, undrawn: drawn.filter((image) => !image.naturalWidth).length,
    toggled: before !== after, zoomed: zoomed !== whole, reset: svg.getAttribute("viewBox") === whole, open,
    theme: document.documentElement.dataset.theme, width: document.documentElement.scrollWidth, window: innerWidth,
  };
  document.body.innerHTML = "<pre id=probe>" + JSON.stringify(result) + "</pre>";
});
</script>"""


def browse(page, width, folder):
    """Open a page in a window of ``width`` pixels; return the probe's result and the console messages."""
    path = folder / "probed.html"
    path.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
        f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout)
    assert match, result.stdout[-500:] + result.stderr[-2000:]
    return json.loads(match.group(1)), [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_displays_the_page(made, tmp_path, width):
    seen, console = browse((made / "report.html").read_text(encoding="utf-8"), width, tmp_path)
    assert console == []
    assert seen["images"] > 20 and seen["broken"] == 0
    assert seen["drawn"] == 3 and seen["undrawn"] == 0  # the image and two samples, each embedded once
    assert seen["toggled"] and seen["zoomed"] and seen["reset"] and seen["open"]
    assert seen["theme"] in ("light", "dark")
    assert seen["width"] <= seen["window"]  # no horizontal scrolling


@pytest.fixture
def program(capfd):
    """Run the program in this process; return its status and the line that begins with "error:"."""

    def run(*words):
        status = main(["inspect", *(str(word) for word in words)])
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == (1 if status else 0), lines
        return status, "".join(lines)

    return run


def test_bad_input(program, config_file, small_opts, record, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    other = tmp_path / "other.pth"
    torch.save({"model": {"something.weight": torch.zeros(3)}}, other)
    json_file = tmp_path / "one_category.json"
    json_file.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "one"}]}))
    output, image = ["--output", tmp_path / "out"], ["--input", record["file_name"]]
    base, opts = ["--config-file", config_file, *output], ["--opts", *small_opts]
    cases = [
        ([*output, *image], "inspect needs a model"),
        (["--config-file", "nowhere.yaml", *output, *image], "nowhere.yaml"),
        ([*base, "--input", "nowhere.jpg", *opts], "nowhere.jpg"),
        ([*base, "--input", broken, *opts], "not a readable image"),
        ([*base, *image, *opts, "MODEL.WEIGHTS", other], "other.pth"),
        ([*base, *image, "--layers", "backbone.fpn_outptu4", *opts], "Did you mean backbone.fpn_output4?"),
        ([*base, *image, "--score-threshold", "7", *opts], "from 0 to 1"),
        ([*base, *image, "--annotations", "nowhere.json", *opts], "nowhere.json"),
        ([*base, *image, "--annotations", json_file, *opts], "1 categories"),
        ([*base, "--parts", "anchors", *opts], "--input"),
        ([*output, "--weights", "nowhere.pth"], "nowhere.pth"),
        ([*output, "--weights", other, *image], "--weights"),
    ]
    for words, expected in cases:
        status, line = program(*words)
        assert status == 2 and expected in line, (words, line)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(program, tmp_path):
    torch.save({"model": {"a.weight": torch.ones(3, 3)}}, tmp_path / "a.pth")
    (tmp_path / "file").write_text("in the way")
    status, line = program("--weights", tmp_path / "a.pth", "--output", tmp_path / "file" / "out")
    assert status == 2 and "cannot be written" in line


def test_a_report_replaces_an_earlier_one_and_keeps_other_files(observation, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_bytes(b"not of the report")
    write_report(Report(about={}, observations=[observation, observation], parts=["result"]), tmp_path)
    assert (tmp_path / "figures" / f"2_{observation.name[:-4]}_result_result.png").is_file()
    write_report(Report(about={}, observations=[observation], parts=["result"]), tmp_path)
    files = {file.name for file in (tmp_path / "figures").iterdir()}
    assert files == {*json.loads((tmp_path / "report.json").read_text())["figures"], "mine.png"}
    assert not any(name.startswith("2_") for name in files)


def test_a_checkpoint_with_its_config(program, tmp_path):
    words = [example.WEIGHTS, example.IMAGES[0], "--parts", "result", "--output", tmp_path]
    assert program(*words) == (0, "")
    assert "circle" in (tmp_path / "report.html").read_text()


def test_an_image_without_ground_truth(program, config_file, small_opts, record, tmp_path):
    shutil.copy(record["file_name"], tmp_path / "unknown.png")
    words = ["--config-file", config_file, "--input", tmp_path / "unknown.png", "--output", tmp_path / "out", "--parts",
             "result", "anchors", "masks", "--score-threshold", "1", "--opts", *small_opts]  # fmt: skip
    assert program(*words) == (0, "")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No ground truth for this image" in page and "random weights" in page
    assert json.loads((tmp_path / "out" / "report.json").read_text())["images"][0]["has_ground_truth"] is False


def test_no_detections_at_all(program, config_file, small_opts, record, tmp_path):
    words = ["--config-file", config_file, "--input", record["file_name"], "--output", tmp_path / "out", "--parts",
             "result", "boxes", "masks", "--opts", *small_opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"]  # fmt: skip
    assert program(*words) == (0, "")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The model detects nothing in this image" in page and "No detection: no score is above the threshold" in page


def test_two_checkpoints_without_a_config(program, model, tmp_path):
    state = model.state_dict()
    torch.save({"model": state}, tmp_path / "a.pth")
    torch.save({"model": {name: value * 2 for name, value in state.items()}}, tmp_path / "b.pth")
    words = ["--weights", tmp_path / "b.pth", "--compare", tmp_path / "a.pth", "--output", tmp_path / "out"]
    assert program(*words) == (0, "")
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())["weights"]
    changes = {tensor["name"]: tensor["change"] for tensor in numbers["tensors"]}
    assert changes["roi_heads.box_head.fc1.weight"] == pytest.approx(1.0)


def test_names_are_escaped(observation, tmp_path):
    name = "<img src=x onerror=alert(1)>$a$\x1b[31m\u202e"
    seen = replace(observation, class_names=[name] * 4, path=f"/{name}.png")
    weights = inspect_weights({f"{name}.weight": torch.full((2, 2), torch.nan)}, name)
    report = Report(about={"weights": name}, observations=[seen], weights=weights, notes=[name], threshold=0.0)
    page = write_report(report, tmp_path).read_text(encoding="utf-8")
    assert "<img src=x" not in page and "\x1b" not in page and "\u202e" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;$a$\\x1b[31m\\u202e" in page


def test_numbers_that_json_cannot_express_are_null():
    findings = inspect_weights({"a.weight": torch.full((2, 2), torch.inf)})
    tensor = as_dict(Report(about={}, weights=findings))["weights"]["tensors"][0]
    assert tensor["min"] is None and tensor["inf"] == 4 and tensor["shape"] == [2, 2]
