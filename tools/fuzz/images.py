"""Image files: formats, modes, orientation, headers, bytes, and things that are no files."""

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from d2_maskrcnn.data.image_reading import image_size, read_image
from d2_maskrcnn.image_files import MAX_PIXELS
from tools.fuzz.harness import Input, expect
from tools.fuzz.values import damage

COUNT = 140
LOSSLESS = {
    ".png": ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"),
    ".tif": ("L", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "F"),
    ".bmp": ("L", "RGB", "P", "1"),
    ".gif": ("L", "P"),
    ".ppm": ("L", "RGB", "1"),
}
LOSSY = {".jpg": ("L", "RGB", "CMYK"), ".webp": ("RGB", "RGBA"), ".jp2": ("L", "RGB"), ".avif": ("RGB",)}
FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%touch CANARY) (w) file\nshowpage\n",
    "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "text": b"hello",
    "web page": b"<html>404</html>",
    "zip": b"PK\x05\x06" + bytes(18),
}


def prepare(folder: Path) -> None:
    """Do nothing: the inputs share no files."""


def make(rng: random.Random, shared: Path, folder: Path) -> Input:
    """Write an intact, damaged, huge or foreign file, or something that is not a file."""
    action = rng.choice(("intact", "intact", "orientation", "bytes", "bytes", "bytes", "huge", "foreign", "no file"))
    if action == "huge":
        return _huge(rng, folder)
    if action == "foreign":
        return _foreign(rng, folder)
    if action == "no file":
        return _no_file(rng, folder)
    suffix = rng.choice((*LOSSLESS, *LOSSLESS, *LOSSY))
    mode = rng.choice((LOSSLESS | LOSSY)[suffix])
    image, path = _image(rng, mode), folder / f"a{suffix}"
    orientation = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 300)) if action == "orientation" else 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = orientation != 1 and suffix in (".png", ".tif", ".jpg", ".webp")
    image.save(path, **({"exif": exif} if turned else {}), **({"quality": 95} if suffix in LOSSY else {}))
    if action == "bytes":
        label, content = damage(rng, path.read_bytes())
        path.write_bytes(content)
        return Input(f"{suffix} {mode}: {label}", lambda: check_any(path))
    expected = _upright(_expected(image), orientation if turned else 1)
    tolerance = 0 if suffix in LOSSLESS else 60
    return Input(f"{suffix} {mode}: orientation {orientation}", lambda: check_pixels(path, expected, tolerance))


def _image(rng: random.Random, mode: str) -> Image.Image:
    width, height = rng.choice(((1, 1), (7, 5), (40, 23)))
    y, x = np.mgrid[:height, :width]
    gray = (x * 5 + y * 2).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(gray.astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(gray.astype(np.float32) / 255)
    color = Image.fromarray(np.stack([gray, 255 - gray, gray // 2], axis=-1))
    if mode in ("RGBA", "LA"):
        color.putalpha(Image.fromarray(np.where(x > width // 2, 255, 0).astype(np.uint8)))
    return color.convert(mode)


def _expected(image: Image.Image) -> np.ndarray:
    """Convert an image to RGB with NumPy as far as that differs from Pillow: (H, W, 3) uint8."""
    if image.mode == "I;16":
        return np.repeat((np.asarray(image) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        values = np.asarray(image)
        return np.repeat((values * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA"):
        values = np.asarray(image.convert("RGBA"))
        return np.where(values[..., 3:] == 255, values[..., :3], 255)  # each pixel is opaque or transparent
    return np.asarray(image.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and flip pixels according to EXIF 2.32, section 4.6.4, tag Orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def check_pixels(path: Path, expected: np.ndarray, tolerance: int) -> None:
    """Check the pixels of an intact file."""
    pixels = check_any(path)
    expect(pixels.shape == expected.shape, f"shape {pixels.shape}, expected {expected.shape}")
    worst = np.abs(pixels.astype(int) - expected).max()
    expect(worst <= tolerance, f"pixels differ by up to {worst}")


def check_any(path: Path) -> np.ndarray:
    """Check the properties that every accepted file has."""
    pixels = read_image(path)
    expect(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0, "not RGB")
    expect(image_size(path) == (pixels.shape[1], pixels.shape[0]), "the size in the header differs")
    expect((read_image(path, "BGR")[..., ::-1] == pixels).all(), "RGB and BGR differ")
    return pixels


def _huge(rng: random.Random, folder: Path) -> Input:
    """Write a PNG of few bytes whose header promises many pixels."""
    width, height = rng.choice(
        ((100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (13_000, 13_000), (0, 5), (1 << 24, 64))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path = folder / "a.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000_000))), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def check() -> None:
        read_image(path)
        expect(False, f"{width}x{height} pixels were read from 10 MB; the limit is {MAX_PIXELS}")

    return Input(f"PNG of {width}x{height}", check)


def _foreign(rng: random.Random, folder: Path) -> Input:
    name, suffix = rng.choice(list(FOREIGN)), rng.choice((".png", ".jpg", ".eps", ""))
    path, canary = folder / f"a{suffix}", folder / "canary"
    path.write_bytes(FOREIGN[name].replace(b"CANARY", os.fsencode(canary)))

    def check() -> None:
        try:
            read_image(path)
        finally:
            expect(not canary.exists(), "code in the file was run")
        expect(False, "it was read as an image")

    return Input(f"{name} as {suffix or 'no suffix'}", check)


def _no_file(rng: random.Random, folder: Path) -> Input:
    path = folder / "a.png"
    kind = rng.choice(("FIFO", "folder", "missing", "device", "loop of links", "NUL in the name", "long name"))
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop of links":
        path.symlink_to(path)
    elif kind == "NUL in the name":
        path = Path(f"{folder}/a\0b.png")
    elif kind == "long name":
        path = folder / ("a" * 300 + ".png")
    return Input(kind, lambda: expect(read_image(path) is None, "it was read"))
