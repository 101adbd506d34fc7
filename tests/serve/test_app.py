"""The endpoints: their answers, and what they refuse."""

import io
import json
import socket
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from d2_maskrcnn import Predictor, example
from d2_maskrcnn.serve import Settings, create_app
from d2_maskrcnn.structures.masks import decode_segmentation
from tests.serve.conftest import assert_same, serve

RAW = {"Content-Type": "image/jpeg"}
KEY = "0123456789abcdef"


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def png_header(width, height):
    """The start of a PNG that promises more pixels than memory has room for."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    pack = lambda part: struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + pack(chunk) + pack(data)


def test_no_objects(client):
    document = client.post("/predict", content=png(np.full((40, 60, 3), 255, np.uint8)), headers=RAW).json()
    assert document["annotations"] == []
    assert document["images"] == [{"id": 1, "file_name": "", "width": 60, "height": 40}]
    assert [each["name"] for each in document["categories"]] == ["circle", "square", "triangle", "star"]


def test_the_answer_is_the_prediction(client, image, expected, predictor):
    document = client.post("/predict", files={"file": ("a.jpg", image)}).json()
    assert_same(document["annotations"], expected(image))
    assert document["images"][0]["file_name"] == "a.jpg"
    masks = predictor(example.IMAGES[0]).masks
    for annotation, mask in zip(document["annotations"], masks, strict=False):
        assert (decode_segmentation(annotation["segmentation"], 384, 384) == mask).all()
    raw = client.post("/predict", content=image, headers=RAW).json()
    assert raw["annotations"] == document["annotations"]


def test_pycocotools_reads_the_answer(client, image, tmp_path):
    files = [("files", ("a.jpg", image)), ("files", ("b.jpg", example.IMAGES[1].read_bytes()))]
    (tmp_path / "coco.json").write_bytes(client.post("/predict_batch", files=files).content)
    coco = COCO(tmp_path / "coco.json")
    assert coco.getImgIds() == [1, 2] and len(coco.getAnnIds(imgIds=[2])) >= 1
    assert coco.annToMask(coco.anns[1]).sum() == coco.anns[1]["area"]


def test_a_batch_has_the_answers_of_its_images(client, image, expected):
    contents = [image, example.IMAGES[1].read_bytes(), png(np.zeros((30, 90, 3), np.uint8))]
    document = client.post("/predict_batch", files=[("files", (f"{i}.jpg", c)) for i, c in enumerate(contents)]).json()
    assert [each["file_name"] for each in document["images"]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [each["id"] for each in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    for number, content in enumerate(contents, 1):
        assert_same([each for each in document["annotations"] if each["image_id"] == number], expected(content))


@pytest.mark.parametrize("name", ["../../etc/a.png", "C:\\b\\a.png", "\x1ba\x07.png"])
def test_file_names_have_no_folders_and_control_characters(client, image, name):
    body = part(f'name="file"; filename="{name}"').replace(b"0.9", image)
    answer = client.post("/predict", content=body, headers={"Content-Type": FORM})
    assert answer.json()["images"][0]["file_name"] == "a.png"


def test_head_requests(client):
    for path in ("/", "/health", "/ready"):
        answer = client.head(path)
        assert answer.status_code == 200 and answer.content == b""


def test_threshold_and_masks(client, image, expected):
    document = client.post("/predict?threshold=0.05&masks=false", content=image, headers=RAW).json()
    assert len(document["annotations"]) == len(expected(image, 0.05)) > len(expected(image, 0.9))
    assert all("segmentation" not in each for each in document["annotations"])
    assert client.post("/predict?threshold=1", content=image, headers=RAW).json()["annotations"] == []


def test_requests_cannot_ask_for_less_than_the_model_returns(caplog):
    app = create_app(Predictor(example.WEIGHTS, device="cpu", threshold=0.75))
    settings = app.state.service.settings
    assert (settings.lowest_threshold, settings.default_threshold) == (0.75, 0.75)
    assert "default threshold is raised from 0.5 to 0.75" in caplog.text


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ("?format=png", "application/json", "image/png"),
        ("?format=jpeg", "*/*", "image/jpeg"),
        ("?format=json", "image/png", "application/json"),
        ("", "image/jpeg, */*;q=0.1", "image/jpeg"),
        ("", "text/html, */*;q=0.8", "application/json"),
    ],
)
def test_annotated_image(client, image, predictor, query, accept, expected):
    answer = client.post(f"/predict{query}", content=image, headers={**RAW, "Accept": accept})
    assert answer.headers["Content-Type"] == expected
    if expected == "image/png":
        results = predictor(example.IMAGES[0])
        drawn = results[results.scores > 0.5].plot()
        assert (np.asarray(Image.open(io.BytesIO(answer.content))) == drawn).all()


FORM = "multipart/form-data; boundary=x"


def part(disposition):
    """A multipart form with one part."""
    return f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n0.9\r\n--x--\r\n".encode()


@pytest.mark.parametrize(
    ("path", "content", "kind", "status", "expected"),
    [
        ("/predict", b"", "image/png", 400, "the image data: empty"),
        ("/predict", b"no image", "image/png", 400, "not a readable image; expected JPEG, PNG"),
        ("/predict", "truncated", "image/jpeg", 400, "corrupt or truncated"),
        ("/predict", png_header(30000, 30000), "image/png", 400, "more than the limit of 1 megapixels"),
        ("/predict", png_header(1001, 1000), "image/png", 400, "1001x1000 pixels"),
        ("/predict", bytes(2**20 + 1), "image/png", 413, "larger than 1 MiB"),
        ("/predict", b"a", "application/x-www-form-urlencoded", 415, "curl -F file=@photo.jpg"),
        ("/predict", b"a", "", 415, "Content-Type is missing"),
        ("/predict", b"a", "multipart/form-data", 400, "(Missing boundary in multipart); expected a file"),
        ("/predict", b"a", FORM, 400, "The multipart form cannot be read"),
        ("/predict", b"--x--\r\n", FORM, 400, "contains no file"),
        ("/predict", part('name="file"; filename="a"')[:-5], FORM, 400, "ends without its closing boundary"),
        ("/predict", part('name="file"'), FORM, 400, "Form field 'file' has no file name; expected a file"),
        ("/predict", part('name="threshold"'), FORM, 422, "Form field threshold: give it in the query"),
        ("/predict", part('name="file"; filename="a.png"'), FORM, 400, "a.png: not a readable image"),
        ("/predict", b"a", "image/", 415, "Content-Type image/: expected"),
        ("/predict?threshold=x", b"a", "image/png", 422, "threshold 'x': expected a number from 0 to 1"),
        ("/predict?threshold=nan", b"a", "image/png", 422, "threshold 'nan': expected a number from 0 to 1"),
        ("/predict?threshold=0_1", b"a", "image/png", 422, "threshold '0_1': expected a number from 0 to 1"),
        ("/predict?threshhold=1", b"a", "image/png", 422, "threshold, masks, format. Did you mean threshold?"),
        ("/predict?threshold=1&threshold=0", b"a", "image/png", 422, "threshold: given 2 times; expected once"),
        ("/predict_batch?format=png", b"a", FORM, 422, "format: unknown parameter"),
        ("/predict?masks=x", b"a", "image/png", 422, "masks 'x': expected true or false"),
        ("/predict?threshold=0.01", b"a", "image/png", 422, "expected at least 0.05"),
        ("/predict?format=gif", b"a", "image/png", 422, "format 'gif': expected json, png or jpeg"),
        ("/unknown", b"a", "image/png", 404, "POST /unknown: not found; /docs lists"),
        ("/info", b"a", "image/png", 405, "method not allowed"),
    ],
)  # fmt: skip
def test_bad_input(client, image, path, content, kind, status, expected):
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post(path, content=image[:5000] if content == "truncated" else content, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert expected in error and "\n" not in error and len(error) < 300
    assert "copy it again" not in error and "tiles" not in error  # a client has no access to the server


def test_several_files(client, image):
    two = client.post("/predict", files=[("file", ("a.jpg", image))] * 2)
    assert (two.status_code, two.json()["error"]) == (400, "2 files: expected one; several go to /predict_batch.")
    four = client.post("/predict_batch", files=[("files", ("a.jpg", image))] * 4)
    assert four.status_code == 413 and "more than 3 files" in four.json()["error"]
    bad = client.post("/predict_batch", files=[("files", ("a.jpg", image)), ("files", ("b.jpg", b"no"))])
    assert bad.status_code == 400 and bad.json()["error"].startswith("b.jpg: ")


def test_a_body_of_unknown_length_is_limited(client):
    answer = client.post("/predict", content=(bytes(2**16) for _ in range(40)), headers=RAW)
    assert answer.status_code == 413


def test_status_endpoints(client, image):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    client.post("/predict", content=image, headers=RAW)
    info = client.get("/info").json()
    assert info["model"] == "example.pth" and info["format"] == "pth" and info["limits"]["max_pixels"] == 10**6
    assert info["classes"][0] == {"id": 1, "name": "circle"}
    metrics = client.get("/metrics").text
    assert 'd2_maskrcnn_requests_total{endpoint="/predict",status="200"}' in metrics
    assert "d2_maskrcnn_batch_images_count" in metrics and "process_resident_memory_bytes" in metrics
    assert "d2_maskrcnn_requests_waiting 0.0" in metrics


def test_documentation_needs_no_other_host(client):
    page = client.get("/docs").text
    assert "swagger-ui-bundle.js" in page and "https://" not in page
    schema = client.get("/openapi.json").json()
    assert schema["info"]["title"] == "d2_maskrcnn"
    assert set(schema["paths"]) == {"/predict", "/predict_batch", "/health", "/ready", "/metrics", "/info"}
    assert {"200", "400", "413", "415", "503"} <= set(schema["paths"]["/predict"]["post"]["responses"])
    assert "422" in schema["paths"]["/predict"]["post"]["responses"]
    assert "HTTPValidationError" not in json.dumps(schema)


def test_api_key(predictor, image):
    with serve(create_app(predictor, Settings(api_key=KEY))) as client:
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY},
                        {"X-API-Key": KEY + "x"}, {"X-API-Key": "\xe9"}):  # fmt: skip
            headers = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = client.post("/predict", content=image, headers={**RAW, **headers})
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            assert KEY not in answer.text
            assert client.get("/info", headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            assert client.post("/predict", content=image, headers={**RAW, **headers}).status_code == 200


def test_a_client_that_waits_for_100_continue(client, image):
    """The server refuses what is too large before the client sends it."""
    request = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {2**30}\r\n"
    url = httpx.URL(client.base_url)
    with socket.create_connection((url.host, url.port), timeout=60) as connection:
        connection.sendall((request + "Expect: 100-continue\r\n\r\n").encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
