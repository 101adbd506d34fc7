"""Play the demo's output in Chromium."""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

PAGE = """<!doctype html><video id="v" src="/v.mp4" muted playsinline></video><script>
const v = document.getElementById("v");
const report = (what) => fetch("/report", {method: "POST", body: JSON.stringify(what)});
const facts = () => ({duration: v.duration, width: v.videoWidth, height: v.videoHeight, time: v.currentTime,
                      shown: v.getVideoPlaybackQuality().totalVideoFrames, error: v.error && v.error.message});
v.onerror = () => report(facts());
v.onended = () => report(facts());
v.playbackRate = 4;
v.play().catch((error) => report({error: String(error)}));
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args, reports: "queue.Queue[dict]", **kwargs) -> None:
        self.reports = reports
        super().__init__(*args, **kwargs)

    def do_POST(self) -> None:
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def play(tmp_path):
    """Play a video in Chromium to its end and return what the page reports."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")

    def run(video: Path) -> dict:
        folder = tmp_path / "site"
        folder.mkdir()
        shutil.copy(video, folder / "v.mp4")
        (folder / "index.html").write_text(PAGE)
        reports: queue.Queue[dict] = queue.Queue()
        handler = functools.partial(Handler, reports=reports, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            command = [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={tmp_path / 'profile'}",
            ]
            command += ["--autoplay-policy=no-user-gesture-required", f"http://127.0.0.1:{server.server_address[1]}/"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                return reports.get(timeout=90)
            finally:
                process.kill()
                process.wait()
                server.shutdown()

    return run


def test_an_annotated_video_plays_to_its_end(run_demo, make_video, play, tmp_path):
    run_demo("--video-input", make_video(frames=40, size=(96, 130), sound="aac"), "--output", tmp_path / "v.mp4")
    report = play(tmp_path / "v.mp4")
    assert report["error"] is None
    assert report["duration"] == pytest.approx(4, abs=0.05)
    assert report["time"] == pytest.approx(4, abs=0.05)
    assert (report["width"], report["height"]) == (130, 96)
    assert report["shown"] >= 20  # at four times the speed some may be skipped
