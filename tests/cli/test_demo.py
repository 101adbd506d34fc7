"""The demo, from its command line to its output files."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from d2_maskrcnn.cli import demo
from d2_maskrcnn.cli.main import build_parser
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.sinks.window import has_windows
from tests.video.conftest import CLASS_NAMES, frame_image, read_video


def run_words(words):
    demo.run(build_parser(demo, "demo.py").parse_args(words))


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, name in enumerate(("a.jpg", "b.png", "c.webp")):
        Image.fromarray(frame_image(index, (100, 140))).save(folder / name)
    return folder


def test_images(run_demo, images, tmp_path):
    run_demo("--input", images, "--output", tmp_path / "out", "--save-json", tmp_path / "r.json")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jpg", "b.png", "c.webp"]
    annotated = np.asarray(Image.open(tmp_path / "out" / "b.png"))
    assert annotated.shape == (100, 140, 3) and (annotated != frame_image(1, (100, 140))).any()
    results = json.loads((tmp_path / "r.json").read_text())
    assert {r["image_id"] for r in results} == {1, 2, 3}
    for result in results:
        assert result["category"] == CLASS_NAMES[result["category_id"] - 1]
        assert mask_util.decode(result["segmentation"]).shape == (100, 140)
        assert result["score"] >= 0.15 and len(result["bbox"]) == 4
        assert mask_util.area(result["segmentation"]) == result["area"]


def test_one_image_to_one_file(run_demo, images, tmp_path):
    run_demo("--input", images / "a.jpg", "--output", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (140, 100)


def test_outputs_do_not_replace_another_input(demo_args, images, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(images / "a.jpg", tmp_path / "other" / "b.png")
    words = ["--input", tmp_path / "other" / "b.png", images / "b.png", "--output", images, "--overwrite"]
    with pytest.raises(UserError, match="would replace the input"):
        run_words(demo_args(*words))


def test_ids_of_coco_images_are_those_in_their_names(run_demo, images, tmp_path):
    (images / "a.jpg").rename(images / "000000001000.jpg")
    run_demo("--input", images / "000000001000.jpg", "--save-json", tmp_path / "r.json")
    assert {r["image_id"] for r in json.loads((tmp_path / "r.json").read_text())} == {1000}


def test_a_broken_image_does_not_stop_the_others(run_demo, images, tmp_path):
    (images / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of 3 images could not be processed, .*; the others are done"):
        run_demo("--input", images, "--output", tmp_path / "out", "--batch-size", "2")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.png", "c.webp"]


@pytest.mark.parametrize("tracking", [True, False], ids=["tracking", "no tracking"])
def test_a_video(run_demo, make_video, tmp_path, tracking):
    video = make_video(size=(96, 128), sound="aac")
    options = [] if tracking else ["--no-tracking"]
    files = ["--save-json", tmp_path / "r.jsonl", "--save-csv", tmp_path / "r.csv", "--batch-size", "3"]
    run_demo("--video-input", video, "--output", tmp_path / "v.mp4", *files, *options)
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].frames == 20 and len(container.streams.audio) == 1
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(20))
    assert [line["time"] for line in lines] == pytest.approx([i / 10 for i in range(20)])
    detections = [d for line in lines for d in line["detections"]]
    assert detections and all(("track_id" in d) == tracking for d in detections)
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert len(rows) == len(detections)
    assert all(row["category"] in CLASS_NAMES for row in rows)


def test_an_output_folder_and_a_clip(run_demo, make_video, tmp_path):
    run_demo("--video-input", make_video(), "--output", tmp_path, "--start", "5", "--end", "1.5s", "--stride", "2")
    assert len(read_video(tmp_path / f"{make_video().stem}.mp4")) == 5


def test_classes_by_name(run_demo, images, tmp_path):
    run_demo("--input", images, "--save-json", tmp_path / "a.json")
    kinds = {r["category"] for r in json.loads((tmp_path / "a.json").read_text())}
    name = sorted(kinds)[0]
    run_demo("--input", images, "--save-json", tmp_path / "b.json", "--classes", name.upper())
    assert {r["category"] for r in json.loads((tmp_path / "b.json").read_text())} == {name}


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_precision(run_demo, images, tmp_path, precision):
    run_demo("--input", images, "--save-json", tmp_path / "r.json", "--precision", precision)
    assert json.loads((tmp_path / "r.json").read_text())


def test_model_processes_give_the_same_detections(run_demo, make_video, tmp_path):
    for name, options in (("one", []), ("two", ["--parallel", "2"])):
        run_demo("--video-input", make_video(), "--save-json", tmp_path / name, *options)
    one, two = ([json.loads(line) for line in (tmp_path / n).read_text().splitlines()] for n in ("one", "two"))
    assert [line["frame"] for line in two] == list(range(20))
    for a, b in zip(one, two, strict=True):
        assert [d["bbox"] for d in a["detections"]] == [pytest.approx(d["bbox"], abs=0.1) for d in b["detections"]]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "none.jpg"], "no such file"),
        (["--video-input", "none.mp4"], "no such file"),
        (["--video-input", "{video}", "--start", "x"], "--start x"),
        (["--video-input", "{video}", "--start", "5", "--end", "3"], "no frame is left"),
        (["--video-input", "{video}", "--start", "50"], "no frame of its 2.0 s"),
        (["--video-input", "{video}", "--output", "{images}/v.webm"], "support H.264"),
        (["--video-input", "{video}", "--output", "{video}"], "would replace the input"),
        (["--video-input", "{video}", "--output", "{images}/a.jpg"], "not a video file name"),
        (["--video-input", "{video}", "--output", "{images}/v.gif"], "not a video file name"),
        (
            ["--input", "{images}/a.jpg", "--output", "{images}/new.gif"],
            "expected a folder, or a file that ends in",
        ),
        (["--input", "{images}", "--output", "{images}"], "would replace the input"),
        (["--input", "{images}", "--output", "{images}/a.jpg"], "need a folder"),
        (["--input", "{images}", "--output", "{images}/new.jpg"], "need a folder"),
        (
            ["--input", "{images}/a.jpg", "--output", "{folder}/o", "--save-json", "{folder}/o/a.jpg"],
            "are the same file",
        ),
        (
            ["--input", "{images}", "--save-json", "{folder}/old"],
            "already exists: choose another name",
        ),
        (["--input", "{images}", "--save-json", "{folder}/new.json"], "new.images.json already exists"),
        (["--input", "{images}", "--save-json", "{images}/a.jpg", "--overwrite"], "would replace the input"),
        (["--input", "{images}", "--save-csv", "{weights}", "--overwrite"], "would replace the input"),
        (["--input", "{images}", "--save-csv", "{folder}/n", "--save-json", "{folder}/n"], "the same file"),
        (["--video-input", "{video}", "--save-json", "{video}", "--overwrite"], "would replace the input"),
        (["--input", "{images}", "--classes", "circl"], "Did you mean circle?"),
        (["--input", "{images}", "--device", "gpu"], "MODEL.DEVICE is 'gpu'"),
        (["--input", "{images}", "--save-csv", "/proc/none/r.csv"], "folder cannot be created"),
    ],
)
def test_bad_input(demo_args, make_video, tiny_weights, images, tmp_path, args, message):
    for name in ("old", "new.images.json"):
        (tmp_path / name).touch()
    filled = [a.format(video=make_video(), images=images, weights=tiny_weights, folder=tmp_path) for a in args]
    outputs = [] if {"--output", "--save-json", "--save-csv"} & set(args) else ["--output", str(tmp_path / "new")]
    with pytest.raises(UserError) as raised:
        run_words([*filled, *outputs, *demo_args()])
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--stride", "0", "at least 1"),
        ("--stride", "two", "whole number"),
        ("--confidence-threshold", "2", "from 0 to 1"),
        ("--confidence-threshold", "nan", "from 0 to 1"),
        ("--batch-size", "100000", "from 1 to 1024"),
        ("--parallel", "10000", "from 0 to 64"),
        ("--timeout", "0", "at least"),
    ],
)
def test_numbers_out_of_range(option, value, expected):
    with pytest.raises(UserError) as caught:
        build_parser(demo, "demo.py").parse_args(["--input", "a.jpg", option, value])
    message = str(caught.value)
    assert option in message and value in message and expected in message


def test_no_weights(repo_dir, images, tmp_path):
    config = ["--config-file", str(repo_dir / "configs" / "quickstart.yaml")]
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS"):
        run_words(["--input", str(images), "--output", str(tmp_path / "o"), *config])


def test_weights_of_another_model(demo_args, images, tmp_path):
    args = demo_args("--input", images, "--output", tmp_path / "o")
    with pytest.raises(UserError, match="does not fill the model"):
        run_words([*args, "MODEL.ROI_HEADS.NUM_CLASSES", "7"])


def test_no_display(demo_args, images, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError, match="No display" if has_windows() else "built without windows"):
        run_words(demo_args("--input", images))


@pytest.fixture
def display(monkeypatch):
    """A virtual display (Xvfb)."""
    if not has_windows():
        pytest.skip("this OpenCV is built without windows (pip install opencv-python)")
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("no Xvfb on this machine (apt-get install xvfb)")
    read, write = os.pipe()
    process = subprocess.Popen([server, "-displayfd", str(write)], pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as numbers:
        monkeypatch.setenv("DISPLAY", f":{numbers.readline().strip()}")
    yield
    process.kill()
    process.wait()


def test_shown_and_recorded_at_once(display, start_demo, make_video, tmp_path):
    process = start_demo("--video-input", make_video(), "--output", tmp_path / "v.mp4", "--show")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(read_video(tmp_path / "v.mp4")) == 20


CLOSED_WINDOW = """
import cv2, numpy as np
import d2_maskrcnn
from d2_maskrcnn.video.frame import Frame
from d2_maskrcnn.video.sinks.window import Window
frame = Frame(np.zeros((64, 96, 3), np.uint8), 0)
window = Window("shown", wait=False)
assert window.show(frame) and window.show(frame)
cv2.destroyAllWindows()
cv2.waitKey(1)
assert not window.show(frame)
window.close()
images = Window("images", wait=True)
cv2.destroyAllWindows()
assert not images.show(frame)
"""


def test_a_closed_window_is_not_opened_again(display, repo_dir):
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_WINDOW], cwd=repo_dir, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("option", ["--save-json", "--save-csv"])
def test_a_full_disk(run_demo, make_video, tmp_path, option):
    with pytest.raises(UserError, match="Cannot write /dev/full"):
        run_demo("--video-input", make_video(), "--output", tmp_path / "v.mp4", option, "/dev/full", "--overwrite")
    if option == "--save-json":  # the header of a CSV file fails before the first frame
        assert len(read_video(tmp_path / "v.mp4")) >= 1


def test_outputs_are_replaced_with_overwrite(run_demo, make_video, tmp_path):
    target = tmp_path / "v.mp4"
    target.write_bytes(b"precious")
    with pytest.raises(UserError, match="already exists: choose another name"):
        run_demo("--video-input", make_video(), "--output", target)
    assert target.read_bytes() == b"precious"
    run_demo("--video-input", make_video(), "--output", target, "--overwrite")
    assert len(read_video(target)) == 20


def test_frames_before_the_damage_are_kept(run_demo, make_video, tmp_path):
    whole = make_video(size=(240, 320), options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match="20 frames"):
        run_demo("--video-input", tmp_path / "cut.mp4", "--output", tmp_path / "v.mp4")
    assert len(read_video(tmp_path / "v.mp4")) >= 3


def test_a_camera_that_is_unplugged(run_demo, make_video, tmp_path, monkeypatch):
    from d2_maskrcnn.video.sources import camera

    path, real = str(make_video()), cv2.VideoCapture
    monkeypatch.setattr(camera.cv2, "VideoCapture", lambda number: real(path))
    monkeypatch.setattr(camera, "PAUSE", 0.001)
    with pytest.raises(UserError, match="unplugged"):
        run_demo("--webcam", "--output", tmp_path, "--save-json", tmp_path / "r.jsonl")
    frames = read_video(tmp_path / "webcam0.mp4")
    assert 1 <= len(frames) <= 20
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == len(frames)


def test_ctrl_c_finishes_the_files(start_demo, make_video, tmp_path):
    video = make_video(frames=3000, size=(96, 128), rate=50)
    process = start_demo("--video-input", video, "--output", tmp_path / "v.mp4", "--save-json", tmp_path / "r.jsonl")
    deadline = time.monotonic() + 120
    while not (tmp_path / "r.jsonl").exists() or (tmp_path / "r.jsonl").read_text().count("\n") < 5:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    frames = len(read_video(tmp_path / "v.mp4"))
    assert 5 <= frames < 3000
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == frames
    assert f"Interrupted; kept {frames} frames" in errors


def test_options_of_detectron2s_demo():
    args = build_parser(demo, "demo.py").parse_args(
        ["--config-file", "c.yaml", "--webcam", "--confidence-threshold", "0.6", "--opts", "MODEL.WEIGHTS", "w.pth"]
    )
    assert args.webcam == 0 and args.opts == ["MODEL.WEIGHTS", "w.pth"] and args.show is None
    assert build_parser(demo, "demo.py").parse_args(["--webcam", "2", "--no-show"]).webcam == 2
