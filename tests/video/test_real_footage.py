"""Real photographs and a real video from ../shared, if that folder exists beside the checkout."""

import json

import av
import pytest
from PIL import Image


def facts(path) -> tuple[int, float, float]:
    """Return the number of frames, seconds and frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(stream))
        assert count == stream.frames
        return count, float(stream.duration * stream.time_base), float(stream.average_rate)


def test_photographs(run_demo, shared_dir, tmp_path):
    run_demo("--input", shared_dir / "data" / "photos", "--output", tmp_path, "--save-json", tmp_path / "r.json")
    photos = sorted((shared_dir / "data" / "photos").glob("*.jpg"))
    assert len(photos) == 9
    for photo in photos:
        assert Image.open(tmp_path / photo.name).size == Image.open(photo).size
    assert {r["file_name"] for r in json.loads((tmp_path / "r.json").read_text())} <= {str(p) for p in photos}


def test_video(run_demo, shared_dir, tmp_path):
    source = shared_dir / "data" / "videos" / "intel_car-detection.mp4"
    run_demo("--video-input", source, "--output", tmp_path, "--save-json", tmp_path / "r.jsonl")
    frames, seconds, rate = facts(tmp_path / source.name)
    assert (frames, rate) == (facts(source)[0], pytest.approx(facts(source)[2]))
    assert seconds == pytest.approx(facts(source)[1], abs=0.05)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == frames
