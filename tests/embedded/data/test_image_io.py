import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn.data import image_reading
from detectron2.data.detection_utils import convert_image_to_rgb, convert_PIL_to_numpy, read_image

EXIF_ORIENTATION = 0x0112


@pytest.fixture
def image():
    """(6, 8, 3) RGB with a different color in each corner."""
    pixels = np.full((6, 8, 3), 100, dtype=np.uint8)
    pixels[0, 0], pixels[0, -1], pixels[-1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return pixels


def test_formats(tmp_path, image):
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    np.testing.assert_array_equal(read_image(path), image)
    np.testing.assert_array_equal(read_image(str(path), "RGB"), image)
    np.testing.assert_array_equal(read_image(path, format="BGR"), image[:, :, ::-1])
    grey = read_image(path, format="L")
    assert grey.shape == (6, 8, 1)
    assert grey[0, 0, 0] == 76  # 0.299 * 255
    with pytest.raises(ValueError, match=r"a\.png.*'RGB'.*'XYZ'"):
        read_image(path, format="XYZ")


def test_yuv(image):
    yuv = convert_PIL_to_numpy(Image.fromarray(image), "YUV-BT.601")
    np.testing.assert_allclose(yuv[0, 0], [0.299, -0.14713, 0.615], atol=1e-6)
    np.testing.assert_allclose(yuv[3, 3], [100 / 255, 0, 0], atol=1e-4)
    assert np.abs(convert_image_to_rgb(yuv, "YUV-BT.601").astype(int) - image).max() <= 1


@pytest.mark.parametrize("format", ["RGB", "BGR", "L", "CMYK"])
def test_back_to_rgb(image, format):
    image = Image.fromarray(image)
    back = convert_image_to_rgb(convert_PIL_to_numpy(image, format), format)
    expected = np.asarray(image.convert(format).convert("RGB")) if format in ("L", "CMYK") else image
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, expected)


def test_tensors_back_to_rgb(image):
    tensor = torch.from_numpy(image.copy()).float()
    np.testing.assert_array_equal(convert_image_to_rgb(tensor, "BGR"), image[:, :, ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, image, orientation):
    # How a camera stores the upright image under each orientation: the inverse of how it is to be shown.
    stored = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, 1),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image, -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), image)


def test_broken_exif_data_do_not_matter(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "a.jpg", exif=b"Exif\0\0no such thing as a TIFF header")
    assert read_image(tmp_path / "a.jpg", "BGR").shape == (6, 8, 3)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", ["BGR", "RGB", "L"])
def test_every_kind_of_image_can_be_read(tmp_path, mode, format):
    value = {"1": 255, "I;16": 200 * 256 + 7}.get(mode, 200)
    grey = Image.fromarray(np.full((5, 7), 200, dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), value, dtype=np.uint16))
    elif mode == "1":
        image = Image.fromarray(np.full((5, 7), True))
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else grey.convert(mode)
    assert image.mode == mode
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr", "I", "F") else "a.png")
    image.save(path)
    pixels = read_image(path, format)
    assert pixels.shape == (5, 7, 1 if format == "L" else 3)
    assert pixels.dtype == np.uint8
    expected = 255 if mode == "1" else 200
    assert np.abs(pixels.astype(int) - expected).max() <= 4  # CMYK and YCbCr round


def test_16_bit_images_keep_their_bits_where_no_format_is_asked_for(tmp_path):
    values = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png").astype(np.uint16), values)
    rounded = np.round(values / 257)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", "L")[:, :, 0], rounded)
    wide = Image.fromarray(values.astype(np.int32))  # mode "I", as older versions of Pillow open such files
    np.testing.assert_array_equal(convert_PIL_to_numpy(wide, "L")[:, :, 0], rounded)


@pytest.mark.parametrize("kind", ["cut-out", "floating point", "gray with alpha", "16 bits"])
def test_training_and_prediction_read_the_same_pixels(tmp_path, kind):
    ramp = np.tile(np.linspace(0, 1, 20, dtype=np.float32), (10, 1))
    levels = (ramp * 255).astype(np.uint8)
    image = {
        "cut-out": Image.fromarray(np.dstack([levels, levels, levels, 255 - levels])),
        "floating point": Image.fromarray(ramp),
        "gray with alpha": Image.merge("LA", (Image.fromarray(levels), Image.fromarray(255 - levels))),
        "16 bits": Image.fromarray((ramp * 65535).astype(np.uint16)),
    }[kind]
    path = tmp_path / ("a.tif" if kind == "floating point" else "a.png")
    image.save(path)
    pixels = read_image(path, "BGR")
    np.testing.assert_array_equal(pixels, image_reading.read_image(path, "BGR"))
    assert pixels.min() == 0 or kind != "floating point"
    assert pixels.max() == 255


def encoded(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.resize(image, (64, 64, 3))).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "bmp", "gif", "webp"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_broken_images_are_named(tmp_path, image, kind, damage):
    data = encoded(image, kind)
    broken = {"empty": b"", "text": b"<html>404 not found</html>", "truncated": data[: len(data) // 2]}[damage]
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(broken)
    with pytest.raises(OSError, match=rf"broken\.{kind}") as caught:
        read_image(path, "BGR")
    assert "cannot read the image" in str(caught.value)
    assert not isinstance(caught.value, FileNotFoundError)


def test_a_broken_png_is_named(tmp_path, image):
    data = bytearray(encoded(image, "png"))
    data[60] ^= 0xFF  # the checksum no longer fits
    (tmp_path / "flipped.png").write_bytes(bytes(data))
    with pytest.raises(OSError, match=r"flipped\.png"):
        read_image(tmp_path / "flipped.png", "BGR")


@pytest.mark.parametrize("name", ["a.png", "a.eps"])
def test_postscript_does_not_start_ghostscript(tmp_path, monkeypatch, name):
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{started}'\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\nshowpage\n")
    with pytest.raises(OSError, match=rf"{name}: not a readable image; expected JPEG"):
        read_image(tmp_path / name, "BGR")
    assert not started.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="a FIFO, device or socket"):
        read_image(tmp_path / "a.png", "BGR")


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg.*DETECTRON2_DATASETS"):
        read_image(tmp_path / "nothing.jpg", "BGR")
