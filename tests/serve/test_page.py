"""The web page, in a browser."""

import json
import queue
import shutil
import subprocess

import pytest
from fastapi import Request, Response
from fastapi.responses import HTMLResponse

from d2_maskrcnn.serve import Settings, create_app
from d2_maskrcnn.serve.page import content_security_policy, render_page
from tests.serve.conftest import serve

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
# A page that opens the real one in a frame of 390 pixels, uses it, and reports what it shows.
DRIVER = """<!doctype html><link rel="icon" href="data:,"><iframe src="/" width="390" height="900"></iframe><script>
const report = (what) => fetch("/report", { method: "POST", body: JSON.stringify(what) });
const frame = document.querySelector("iframe");
const wait = async (condition) => { while (!condition()) await new Promise((resolve) => setTimeout(resolve, 20)); };
const problems = [];
frame.onload = async () => {
  const page = frame.contentDocument, element = (id) => page.getElementById(id);
  page.addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
  frame.contentWindow.addEventListener("error", (event) => problems.push(event.message));
  const choose = async (name, path) => {
    const files = new DataTransfer();
    files.items.add(new File([await (await fetch(path)).blob()], name));
    element("file").files = files.files;
    element("file").dispatchEvent(new Event("change"));
  };
  const seen = () => ({ rows: element("rows").rows.length, summary: element("summary").textContent });
  const pixels = () => {
    const view = element("view"), data = view.getContext("2d").getImageData(0, 0, view.width, view.height).data;
    return data.reduce((sum, value) => (sum + value) % 1e9, 0);
  };
  const move = (value) => {
    element("threshold").value = value;
    element("threshold").dispatchEvent(new Event("input"));
  };
  const result = { problems };
  try {
    await wait(() => element("model").textContent);
    result.model = element("model").textContent;
    await choose("broken.jpg", "/openapi.json");
    await wait(() => element("status").classList.contains("error"));
    result.error = element("status").textContent;
    await choose("shapes.jpg", "/image");
    await wait(() => element("status").textContent.startsWith("shapes.jpg: 384"));
    result.half = seen();
    const annotated = pixels();
    for (const id of ["masks", "boxes", "labels"]) {
      const before = pixels();
      element(id).click();
      result[id] = before !== pixels();
    }
    const bare = document.createElement("canvas");
    bare.width = bare.height = 384;
    bare.getContext("2d").drawImage(await createImageBitmap(await (await fetch("/image")).blob()), 0, 0);
    const plain = bare.getContext("2d").getImageData(0, 0, 384, 384).data;
    result.plain = plain.reduce((sum, value) => (sum + value) % 1e9, 0) === pixels() && annotated !== pixels();
    move(0.05);
    result.low = seen();
    move(1);
    result.one = seen();
    move(0.5);
    const links = [];
    frame.contentWindow.URL.createObjectURL = (blob) => { links.push(blob); return "#"; };
    element("json").click();
    element("png").click();
    await wait(() => links.length === 2);
    result.json = JSON.parse(await links[0].text());
    result.png = links[1].type;
    const theme = () => frame.contentWindow.getComputedStyle(page.body).backgroundColor;
    const light = theme();
    element("theme").click();
    result.theme = light !== theme();
    result.width = page.documentElement.scrollWidth;
  } catch (error) {
    problems.push(String(error));
  }
  await report(result);
};
</script>"""


def test_policy_allows_nothing_from_other_hosts():
    html = render_page(Settings())
    assert "http://" not in html and "https://" not in html and " style=" not in html
    policy = content_security_policy(html)
    assert policy.count("sha256-") == 2 and "unsafe" not in policy


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(predictor, image, expected, tmp_path):
    app = create_app(predictor, Settings(), "example.pth")
    reports: queue.Queue[dict] = queue.Queue()

    @app.get("/driver")
    async def driver() -> HTMLResponse:
        return HTMLResponse(DRIVER)

    @app.get("/image")
    async def image_file() -> Response:
        return Response(image, media_type="image/jpeg")

    @app.post("/report")
    async def report(request: Request) -> None:
        reports.put(json.loads(await request.body()))

    with serve(app) as client:
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
            f"{client.base_url}/driver",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            seen = reports.get(timeout=120)
        finally:
            process.kill()
            process.wait()
    assert seen["problems"] == []
    assert seen["model"] == "example.pth: circle, square, triangle, star"
    assert "broken.jpg" not in seen["error"] and "not a readable image" in seen["error"]
    assert seen["half"]["rows"] == len(expected(image)) and "1 circle" in seen["half"]["summary"]
    assert seen["low"]["rows"] == len(expected(image, 0.05))
    assert seen["one"] == {"rows": 0, "summary": "No detections above this score."}
    assert seen["masks"] and seen["boxes"] and seen["labels"] and seen["plain"] and seen["theme"]
    assert [each["category"] for each in seen["json"]["annotations"]] == [each["category"] for each in expected(image)]
    assert seen["json"]["images"][0]["file_name"] == "shapes.jpg"
    assert seen["png"] == "image/png"
    assert seen["width"] <= 390
