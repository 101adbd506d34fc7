"""Images of any number of channels and bits: every value as it was written, and one line for the others."""

import io
import logging
import sys

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from d2_maskrcnn import UserError
from d2_maskrcnn.data.image_reading import image_size, read_display, read_image, summarize_image
from d2_maskrcnn.data.image_sources import load_image
from d2_maskrcnn.data.mapper import MaskRCNNMapper
from d2_maskrcnn.data.raw_images import apply_resize, channel_statistics, read_raw, to_rgb
from detectron2.data import transforms as T

SIZE = (20, 30)
WIDE = np.random.default_rng(0).integers(0, 65536, (*SIZE, 6), np.uint16)
SMALL = (WIDE >> 8).astype(np.uint8)


def tiff(pixels, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def encoded(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def pillow(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PLANES = np.ascontiguousarray(WIDE[:, :, :5].transpose(2, 0, 1))
FLOATS = WIDE[:, :, :2].astype(np.float32) / 7
FILES = {
    "gray png": (pillow(Image.fromarray(SMALL[:, :, 0]), "PNG"), SMALL[:, :, :1]),
    "gray 16-bit png": (encoded(".png", WIDE[:, :, 0]), WIDE[:, :, :1]),
    "gray 16-bit pgm": (encoded(".pgm", WIDE[:, :, 0]), WIDE[:, :, :1]),
    "rgb png": (pillow(Image.fromarray(SMALL[:, :, :3]), "PNG"), SMALL[:, :, :3]),
    "rgba png": (pillow(Image.fromarray(SMALL[:, :, :4]), "PNG"), SMALL[:, :, :4]),
    "rgb 16-bit png": (encoded(".png", WIDE[:, :, [2, 1, 0]]), WIDE[:, :, :3]),
    "rgba 16-bit png": (encoded(".png", WIDE[:, :, [2, 1, 0, 3]]), WIDE[:, :, :4]),
    "rgb 16-bit ppm": (encoded(".ppm", WIDE[:, :, [2, 1, 0]]), WIDE[:, :, :3]),
    "gray 16-bit tiff": (tiff(WIDE[:, :, 0]), WIDE[:, :, :1]),
    "bigtiff": (tiff(WIDE[:, :, 0], bigtiff=True), WIDE[:, :, :1]),
    "signed tiff": (tiff(WIDE[:, :, 0].astype(np.int16)), WIDE[:, :, :1].astype(np.int16)),
    "float tiff": (tiff(FLOATS[:, :, 0]), FLOATS[:, :, :1]),
    "rgb tiff": (tiff(SMALL[:, :, :3], photometric="rgb"), SMALL[:, :, :3]),
    "rgb 16-bit tiff": (tiff(WIDE[:, :, :3], photometric="rgb"), WIDE[:, :, :3]),
    "5 samples": (tiff(WIDE[:, :, :5], planarconfig="contig", photometric="minisblack"), WIDE[:, :, :5]),
    "5 planes": (tiff(PLANES, planarconfig="separate", photometric="minisblack"), WIDE[:, :, :5]),
    "5 pages": (tiff(PLANES), WIDE[:, :, :5]),
    "imagej": (tiff(PLANES, imagej=True, metadata={"axes": "CYX"}), WIDE[:, :, :5]),
    "ome": (tiff(PLANES, ome=True, metadata={"axes": "CYX"}), WIDE[:, :, :5]),
    "float planes": (tiff(FLOATS.transpose(2, 0, 1).copy()), FLOATS),
    "lzw": (tiff(PLANES, compression="lzw"), WIDE[:, :, :5]),
}


@pytest.mark.parametrize("name", FILES)
def test_every_value_is_as_written(name, tmp_path):
    content, expected = FILES[name]
    path = tmp_path / ("image.tif" if content[:2] in (b"II", b"MM") else "image.png")
    path.write_bytes(content)
    for source in (path, content):
        pixels = read_raw(source, expected.shape[2])
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, expected.astype(np.float32))
    assert image_size(path) == (30, 20)
    assert read_display(path, "RAW").shape == read_display(path).shape == (20, 30, 3)
    assert summarize_image(path).size == (30, 20)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["gray", "rgb 16-bit png", "5 samples"])
def test_images_are_turned_upright(kind, turn, tmp_path):
    gray = Image.fromarray(SMALL[:, :, 0])
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = read_raw(pillow(gray, "TIFF", exif=exif), 1)[:, :, 0]
    if kind == "gray":
        content = pillow(gray, "PNG", exif=exif)
    elif kind == "5 samples":
        tag = [(274, "H", 1, turn, True)]
        wide = np.repeat(SMALL[:, :, :1], 5, axis=2)
        content = tiff(wide, planarconfig="contig", photometric="minisblack", extratags=tag)
        assert image_size(content) == (upright.shape[1], upright.shape[0])
    else:
        content = encoded(".png", np.repeat(SMALL[:, :, :1].astype(np.uint16), 3, axis=2))
        chunk = pillow(gray, "PNG", exif=exif)
        start = chunk.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(chunk[start : start + 4], "big")
        content = content[:33] + chunk[start:end] + content[33:]  # after the header
    np.testing.assert_array_equal(read_raw(content, read_channels(content))[:, :, 0], upright)


def read_channels(content: bytes) -> int:
    return 1 if content[:4] == b"\x89PNG" and content[25] == 0 else (3 if content[:4] == b"\x89PNG" else 5)


def test_values_that_are_not_finite_become_0():
    values = np.array([[np.nan, np.inf], [-np.inf, 3]], np.float32)
    assert read_raw(tiff(values), 1)[:, :, 0].tolist() == [[0, 0], [0, 3]]


def test_wrong_files_get_one_line(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(FILES["5 pages"][0])
    with pytest.raises(UserError, match=r"a\.tif has 5 channels, the model takes 3 \(MODEL\.PIXEL_MEAN"):
        read_raw(path, 3)
    path.write_bytes(tiff(np.zeros((2, 3, *SIZE), np.uint8), imagej=True, metadata={"axes": "TCYX"}))
    with pytest.raises(UserError, match=r"axes TCYX .* save each image as a file of its own"):
        read_raw(path, 3)
    path.write_bytes(FILES["5 samples"][0][:300])
    with pytest.raises(UserError, match=r"a\.tif: not a readable TIFF"):
        read_raw(path, 5)
    path.write_bytes(FILES["5 samples"][0])
    with pytest.raises(UserError, match=r"a\.tif: not a readable image.* INPUT\.FORMAT RAW reads it"):
        read_image(path)
    with pytest.raises(UserError, match="more than the limit of 0 megapixels of 3 channels"):
        read_raw(path, 5, max_pixels=500)
    with pytest.raises(UserError, match="not a readable image"):
        read_raw(FILES["rgb 16-bit png"][0][:200], 3)
    with pytest.raises(UserError, match="no such file"):
        read_raw(tmp_path / "missing.png", 1)


def test_without_tifffile_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    np.testing.assert_array_equal(read_raw(FILES["gray 16-bit tiff"][0], 1), WIDE[:, :, :1])
    with pytest.raises(UserError, match=r'a TIFF that Pillow cannot read.*pip install "d2_maskrcnn\[tiff\]"'):
        read_raw(FILES["5 samples"][0], 5)


def test_arrays_keep_their_values():
    for pixels in (WIDE[:, :, :5], SMALL[:, :, :5], FLOATS):
        np.testing.assert_array_equal(load_image(pixels, raw_channels=pixels.shape[2]), pixels.astype(np.float32))
    assert load_image(WIDE[:, :, 0], raw_channels=1).shape == (*SIZE, 1)
    with pytest.raises(UserError, match="has 5 channels, the model takes 3"):
        load_image(WIDE[:, :, :5], raw_channels=3)
    with pytest.raises(UserError, match="complex64"):
        load_image(np.zeros((4, 4, 1), np.complex64), raw_channels=1)
    with pytest.raises(UserError, match="Expected an image, got int"):
        load_image(3, raw_channels=1)


def test_display_stretches_each_channel():
    image = np.zeros((100, 100, 2), np.float32)
    image[:, :50, 0], image[:, :, 1] = 1000, np.linspace(5, 6, 100)
    shown = to_rgb(image)
    assert shown.dtype == np.uint8
    assert (shown[:, :50, 0] == 255).all() and (shown[:, 50:, 0] == 0).all()
    assert shown[:, 0, 1].max() == 0 and shown[:, -1, 1].min() == 255 and abs(int(shown[0, 50, 1]) - 128) <= 3
    assert (shown[:, :, 2] == 0).all()
    gray = to_rgb(image[:, :, :1])
    assert (gray == gray[:, :, :1]).all() and gray.max() == 255
    assert to_rgb(np.full((3, 3, 1), 7.0)).max() == 0


def test_resizing_is_that_of_8_bit_images():
    image = SMALL[:, :, :3]
    resize = T.ResizeShortestEdge([13, 13], 100).get_transform(image)
    expected = resize.apply_image(image).astype(np.float32)
    actual = apply_resize(resize, image.astype(np.float32))
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1  # 8-bit images are rounded after each axis


def test_augmentations(tiny_cfg, tmp_path):
    cfg = tiny_cfg().clone()
    cfg.defrost()
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RAW", [3e4] * 5, [2e4] * 5
    for each in (T.RandomSaturation(0.5, 1.5), T.RandomApply(T.RandomLighting(0.1))):
        with pytest.raises(UserError, match=r"Random\w+ changes RGB colors, but INPUT\.FORMAT is RAW: remove it"):
            MaskRCNNMapper(cfg, is_train=True, augmentations=[each])
    path = tmp_path / "a.tif"
    path.write_bytes(FILES["5 samples"][0])
    chosen = [T.RandomCrop("relative", (0.9, 0.9)), T.Resize((40, 60)), T.RandomFlip(1.0), T.RandomBrightness(0.5, 0.5)]
    sample = MaskRCNNMapper(cfg, True, augmentations=chosen)({"file_name": str(path), "annotations": []})
    assert sample["image"].shape == (5, 40, 60) and sample["image"].max() > 20_000
    assert len(sample["instances"]) == 0


def test_statistics(tmp_path):
    first, second = tmp_path / "a.tif", tmp_path / "b.tif"
    tifffile.imwrite(first, WIDE[:, :, 0])
    tifffile.imwrite(second, WIDE[:10, :, 1])
    values = np.concatenate([WIDE[:, :, 0].ravel(), WIDE[:10, :, 1].ravel()]).astype(float)
    mean, std = channel_statistics([first, second])
    assert mean == [pytest.approx(values.mean(), rel=1e-5)] and std == [pytest.approx(values.std(), rel=1e-5)]
    with pytest.raises(UserError, match="no images"):
        channel_statistics([])


@pytest.mark.parametrize("channels", [1, 5])
def test_values_beyond_float32_are_refused_without_warnings(channels):
    values = np.full((*SIZE, channels), 1e300)
    content = tiff(np.squeeze(values), planarconfig="contig", photometric="minisblack")
    with pytest.raises(UserError, match=r"the value 1e\+300 of the type float64; expected values up to 3\.4e\+38"):
        read_raw(content, channels)
    values[0, 0] = np.nan
    assert not to_rgb(values).any()


@pytest.mark.parametrize(
    ("shapes", "kind", "expected"),
    [
        ([], np.uint8, "a TIFF without any image"),
        ([(8, 9, 5)], np.complex64, "values of the type complex64; expected integers or floating point"),
        ([(8, 9, 5), (4, 5, 5)], np.uint16, r"pages differ: \(8, 9, 5\) and \(4, 5, 5\)"),
        ([(8, 9), (4, 5)], np.uint8, r"pages differ: \(8, 9\) and \(4, 5\)"),
        ([(8, 9)], np.uint8, r"has 1 channel, the model takes 5"),
    ],
)
def test_other_layouts_are_refused_without_log_lines(shapes, kind, expected, caplog):
    buffer = io.BytesIO(b"" if shapes else b"II*\0\0\0\0\0")
    if shapes:
        with tifffile.TiffWriter(buffer) as writer:
            for shape in shapes:
                options = {"planarconfig": "contig"} if len(shape) == 3 else {}
                writer.write(np.zeros(shape, kind), photometric="minisblack", **options)
    with pytest.raises(UserError, match=expected):
        read_raw(buffer.getvalue(), 5)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_the_shorter_side_of_long_images_keeps_a_pixel(kind):
    transform = T.ResizeShortestEdge(32, 64).get_transform(np.zeros((1, 9000, 3), np.uint8))
    assert apply_resize(transform, np.full((1, 9000, 3), 7, kind)).tolist() == [[[7, 7, 7]] * 64]
    assert transform.apply_coords(np.array([[4500.0, 1.0]])).tolist() == [[32, 1]]
