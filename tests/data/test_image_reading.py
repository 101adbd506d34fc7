import os
import socket
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from d2_maskrcnn import UserError, image_files
from d2_maskrcnn.data.image_reading import image_size, is_image_name, read_image

RGB = np.zeros((20, 30, 3), np.uint8)
RGB[:10, :15] = (250, 10, 20)  # the top left quarter is red
RGB[10:, 15:] = (20, 30, 240)

# Stored pixels that each EXIF orientation turns back to RGB.
STORED = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, 1),
    7: np.rot90(RGB, 2).transpose(1, 0, 2),
    8: np.rot90(RGB, -1),
}


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_every_format(tmp_path, suffix, orientation):
    path = tmp_path / f"image.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    try:
        stored.save(path, exif=exif_of(orientation), quality=95)
    except KeyError:
        pytest.skip(f"this Pillow does not write {suffix}")
    image = read_image(path)
    assert image.shape == RGB.shape
    assert np.abs(image[2:8, 2:13].astype(int) - RGB[0, 0]).max() < 40
    assert np.abs(image[12:18, 17:28].astype(int) - RGB[-1, -1]).max() < 40
    assert image_size(path) == (30, 20)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_uncompressed_tiff_that_is_turned(tmp_path, mode):
    gray = (np.arange(35).reshape(5, 7) * 7).astype(np.uint8)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    image.save(tmp_path / "image.tif", exif=exif_of(6))
    assert (read_image(tmp_path / "image.tif")[..., 0] == np.rot90(gray, -1)).all()


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.ascontiguousarray(STORED[6])).save(path)
    content, exif = path.read_bytes(), b"eXIf" + exif_of(6).tobytes()[6:]
    chunk = (len(exif) - 4).to_bytes(4, "big") + exif + zlib.crc32(exif).to_bytes(4, "big")
    path.write_bytes(content[:-12] + chunk + content[-12:])  # before IEND
    assert (read_image(path) == RGB).all()


def test_damaged_exif_leaves_the_pixels(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "image.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert (read_image(tmp_path / "image.png") == RGB).all()
    assert image_size(tmp_path / "image.png") == (30, 20)


def in_mode(mode: str) -> Image.Image:
    gray = np.full((20, 30), 128, np.uint8)
    if mode == "I;16":
        return Image.fromarray(gray.astype(np.uint16) * 257)
    if mode == "RGBA":
        return Image.fromarray(np.dstack([RGB, np.full((20, 30), 255, np.uint8)]))
    if mode in ("L", "1", "LA"):
        return Image.fromarray(gray if mode != "1" else gray * 0 + 255).convert(mode)
    return Image.fromarray(RGB).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("L", "png", (128, 128, 128)),
        ("L", "pgm", (128, 128, 128)),
        ("1", "png", (255, 255, 255)),
        ("LA", "png", (128, 128, 128)),
        ("I;16", "png", (128, 128, 128)),
        ("I;16", "tif", (128, 128, 128)),
        ("P", "png", (250, 10, 20)),
        ("P", "gif", (250, 10, 20)),
        ("RGB", "bmp", (250, 10, 20)),
        ("RGBA", "png", (250, 10, 20)),
        ("CMYK", "jpg", (250, 10, 20)),
        ("CMYK", "tif", (250, 10, 20)),
        ("YCbCr", "jpg", (250, 10, 20)),
    ],
)
def test_color_formats(tmp_path, mode, suffix, expected):
    path = tmp_path / f"image.{suffix}"
    in_mode(mode).save(path)
    image = read_image(path)
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8
    assert image.flags.c_contiguous and image.flags.writeable
    assert np.abs(image[4, 6].astype(int) - expected).max() <= (40 if mode in ("CMYK", "P", "YCbCr") else 2)
    assert (read_image(path, "BGR") == image[:, :, ::-1]).all()
    assert (read_image(path.read_bytes()) == image).all()


@pytest.mark.parametrize(
    ("stored", "suffix", "expected"),
    [
        (np.full((4, 5), 200, np.uint16), "png", 1),  # a dark image stays dark
        (np.full((4, 5), 200, np.uint16), "tif", 1),
        (np.full((4, 5), 0.5, np.float32), "tif", 128),
        (np.full((4, 5), 100.0, np.float32), "tif", 100),
        (np.full((4, 5), 70000, np.int32), "tif", 255),
        (np.full((4, 5), np.nan, np.float32), "tif", 0),
        (np.full((4, 5), -np.inf, np.float32), "tif", 0),
    ],
    ids=str,
)
def test_more_than_8_bits(tmp_path, stored, suffix, expected):
    Image.fromarray(stored).save(tmp_path / f"image.{suffix}")
    assert (read_image(tmp_path / f"image.{suffix}") == expected).all()


def test_nan_does_not_hide_the_range_of_floats(tmp_path):
    Image.fromarray(np.array([[np.nan, 0.25, 1.0]], np.float32)).save(tmp_path / "image.tif")
    assert read_image(tmp_path / "image.tif")[0, :, 0].tolist() == [0, 64, 255]


def test_alpha_is_composited_on_white(tmp_path):
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 128
    cutout = Image.fromarray(np.dstack([RGB * 0, alpha]))
    cutout.save(tmp_path / "cutout.png")
    assert read_image(tmp_path / "cutout.png")[0, ::10, 0].tolist() == [255, 127, 0]
    Image.fromarray(RGB[:, :, 0]).save(tmp_path / "gray.png", transparency=0)
    assert read_image(tmp_path / "gray.png")[[0, -1], 0, 0].tolist() == [250, 255]
    palette = Image.fromarray(RGB).quantize(4)
    palette.save(tmp_path / "palette.gif", transparency=palette.getpixel((29, 0)))
    assert read_image(tmp_path / "palette.gif")[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
def test_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / f"image.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / f"image.{suffix}")[3, 3].tolist() == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16", "F", "transparency"])
def test_strips_equal_the_whole(tmp_path, mode, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (23, 30, 4), dtype=np.uint8)
    path = tmp_path / "image.tif"
    if mode == "I;16":
        Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0]).save(path)
    elif mode == "F":
        Image.fromarray(noise[..., 0].astype(np.float32)).save(path)
    elif mode == "transparency":
        path = tmp_path / "image.png"
        Image.fromarray(noise[..., :3]).quantize(20).save(path, transparency=bytes(range(0, 200, 10)))
    else:
        Image.fromarray(noise).convert("RGB" if mode in ("P", "CMYK") else "RGBA").convert(mode).save(path)
    whole = read_image(path)
    monkeypatch.setattr(image_files, "STRIP_PIXELS", 150)
    assert (read_image(path) == whole).all()


def test_too_many_pixels(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    Image.new("L", (25, 40)).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").shape == (40, 25, 3)
    assert not recwarn.list  # Pillow's warning about a decompression bomb
    Image.new("L", (25, 41)).save(tmp_path / "larger.png")
    Image.new("L", (25, 49)).save(tmp_path / "largest.png")
    for read in (read_image, image_size):
        with pytest.raises(UserError, match=r"larger\.png: 25x41 pixels, more than the limit of 0 megapixels \(0 MB"):
            read(tmp_path / "larger.png")
        with pytest.raises(UserError, match=r"largest\.png: .*more than the limit"):
            read(tmp_path / "largest.png")


def write_header(path, width: int, height: int) -> None:
    """Write a PNG of a few pixels whose header claims another size."""
    Image.new("1", (6, 6)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")  # in the IHDR chunk
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def test_limits_of_whole_images(tmp_path):
    """Pillow's own limit lies between that of an image and that of one that is predicted by tiles."""
    before = Image.MAX_IMAGE_PIXELS
    for width, hint in ((20_000, "scale it down, or predict by tiles"), (40_000, "save it as a TIFF file of tiles")):
        path = tmp_path / f"{width}.png"
        write_header(path, width, 10_000)
        with pytest.raises(UserError, match=f"more than the limit of 178 megapixels.*{hint}"):
            image_size(path)
    assert image_size(tmp_path / "20000.png", image_files.MAX_TILED_PIXELS) == (20_000, 10_000)
    with pytest.raises(UserError, match="more than the limit of 357 megapixels"):
        image_size(tmp_path / "40000.png", image_files.MAX_TILED_PIXELS)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_small_file_that_claims_a_huge_image_is_refused_from_its_header(tmp_path):
    write_header(tmp_path / "bomb.png", 60_000, 60_000)
    with pytest.raises(UserError, match=r"(60000x60000 pixels, )?more than the limit of 178 megapixels"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "eps"])
def test_postscript_is_not_decoded_under_any_name(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, format="EPS")
    with pytest.raises(UserError, match=r"image\.\w+: not a readable image; expected JPEG, PNG"):
        read_image(path)
    assert not is_image_name("a.eps") and is_image_name("a.JPG") and not is_image_name("a.txt")


def test_heic_without_its_package_is_reported(tmp_path, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    path = tmp_path / "phone.HEIC"
    path.write_bytes(bytes(4) + b"ftypheic" + bytes(20))
    assert is_image_name(path)
    with pytest.raises(UserError, match=r"phone\.HEIC: HEIC needs a package: pip install pillow-heif"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_only_regular_files_are_opened(tmp_path, read):
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for name in ("fifo.png", "socket.png", "/dev/zero"):
            with pytest.raises(UserError, match="a FIFO, device or socket; expected an image file"):
                read(tmp_path / name)
    with pytest.raises(UserError, match="a folder; expected an image file"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"nothing\.png: no such file"):
        read(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="cannot be read"):
        read("a\0.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "gif", "ppm", "jp2", "avif"])
def test_truncated_files_are_one_line(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    try:
        Image.fromarray(noise).save(path)
    except KeyError:
        pytest.skip(f"this Pillow does not write {suffix}")
    content = path.read_bytes()
    for length in (0, 10, 60, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"image\.\w+: not a readable image") as error:
            read_image(path)
        assert "\n" not in str(error.value)


def test_mutated_files_are_read_or_refused(tmp_path):
    """A damaged file gives an array or a UserError, and nothing else."""
    rng = np.random.default_rng(1)
    outcomes = set()
    for suffix in ("jpg", "png", "tif", "webp", "gif", "bmp"):
        path = tmp_path / f"image.{suffix}"
        ImageOps.posterize(Image.fromarray(RGB), 4).save(path, **({"exif": exif_of(6)} if suffix != "bmp" else {}))
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            mutated = content.copy()
            mutated[rng.integers(0, len(content), rng.integers(1, 9))] = rng.integers(0, 256)
            for read in (read_image, image_size):
                try:
                    read(mutated.tobytes())
                    outcomes.add("read")
                except UserError as error:
                    assert str(error).startswith("the image data: ")
                    outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_unknown_channels(tmp_path):
    with pytest.raises(ValueError, match="'HSV'"):
        read_image(tmp_path / "any.png", "HSV")


def test_too_much_text_is_not_called_damage(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (4, 5)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(UserError, match="more metadata text than Pillow reads; save it without metadata"):
        read_image(tmp_path / "a.png")
