"""Windows of TIFF files: the same pixels as of the whole image, for every layout, compression and kind of values."""

import contextlib
import io
import pickle
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from d2_maskrcnn import UserError
from d2_maskrcnn.data import large_images, tiff_layout, windowed_images
from d2_maskrcnn.data.image_reading import read_image
from d2_maskrcnn.data.large_images import open_windowed, read_for_tiles, size_for_tiles
from d2_maskrcnn.data.raw_images import read_raw, resize, to_rgb
from d2_maskrcnn.data.windowed_images import WindowedImage
from d2_maskrcnn.structures.windows import Window

HEIGHT, WIDTH = 150, 211
NOISE = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 6), np.uint16)
SMOOTH = np.linspace(0, 65535, HEIGHT * WIDTH * 6).reshape(HEIGHT, WIDTH, 6).astype(np.uint16)
SMALL = (SMOOTH >> 8).astype(np.uint8)
FLOATS = (SMOOTH / 65535).astype(np.float32)
WINDOWS = [
    Window(0, 0, WIDTH, HEIGHT),
    Window(30, 17, 31, 18),
    Window(100, 60, 180, 149),
    Window(150, 100, WIDTH, HEIGHT),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make blocks and strips so small that the images have many."""
    monkeypatch.setattr(windowed_images, "BLOCK_PIXELS", 40 * WIDTH)
    monkeypatch.setattr(windowed_images, "BAND_PIXELS", 30 * WIDTH)
    monkeypatch.setattr(tiff_layout, "STRIP_BYTES", 2000)
    monkeypatch.setattr(large_images, "MIN_PIXELS", 0)


def tiff(pixels, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def pillow(mode: str, turn: int = 1, rows: int = 16, **options) -> bytes:
    image = Image.fromarray(SMALL[:, :, :3]).convert({"I;16": "L", "F": "L", "I": "L"}.get(mode, mode))
    if mode == "I;16":
        image = Image.fromarray(NOISE[:, :, 0])
    elif mode == "I":
        image = Image.fromarray(NOISE[:, :, 0].astype(np.int32))
    elif mode == "F":
        image = Image.fromarray(FLOATS[:, :, 0])
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[278], info[274] = rows, turn
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", tiffinfo=info, **options)
    return buffer.getvalue()


PALETTE = NOISE.ravel()[:768].reshape(3, 256)
COLOR_PLANES = np.ascontiguousarray(SMALL[:, :, :3].transpose(2, 0, 1))
PLANES = np.ascontiguousarray(NOISE[:, :, :5].transpose(2, 0, 1))
COLOR_FILES = {
    "uncompressed, one strip": tiff(SMALL[:, :, :3], photometric="rgb"),
    "uncompressed strips": tiff(SMALL[:, :, :3], photometric="rgb", rowsperstrip=24),
    "planes": tiff(COLOR_PLANES, photometric="rgb", planarconfig="separate"),
    "gray tiles": tiff(SMALL[:, :, 0], tile=(32, 48)),
    "tiles": tiff(SMALL[:, :, :3], photometric="rgb", tile=(32, 48)),
    "deflate tiles": tiff(SMALL[:, :, :3], photometric="rgb", tile=(32, 48), compression="deflate", predictor=True),
    "jpeg tiles": tiff(SMALL[:, :, :3], photometric="ycbcr", tile=(32, 48), compression="jpeg", subsampling=(2, 2)),
    "jpeg strips": tiff(SMALL[:, :, :3], photometric="ycbcr", rowsperstrip=16, compression="jpeg", subsampling=(2, 2)),
    "bigtiff": tiff(SMALL[:, :, :3], photometric="rgb", tile=(64, 64), bigtiff=True, byteorder="<"),
    "16 bits": tiff(NOISE[:, :, 0], tile=(32, 32), compression="lzw"),
    "16 bits, big-endian": tiff(NOISE[:, :, 0], rowsperstrip=8, byteorder=">"),
    "16-bit colors": tiff(NOISE[:, :, :3], photometric="rgb", tile=(32, 32)),
    "white is 0": tiff(SMALL[:, :, 0], photometric="miniswhite", tile=(32, 32)),
    "palette": tiff(SMALL[:, :, 0], photometric="palette", colormap=PALETTE, rowsperstrip=8),
    "alpha": tiff(SMALL[:, :, :4], photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32)),
    "floats up to 1": tiff(FLOATS[:, :, 0], tile=(32, 32)),
    "floats above 1 in the last tile": tiff(FLOATS[:, :, 0] * 1.01, tile=(32, 32)),
    "32-bit integers": tiff(SMALL[:, :, 0].astype(np.int32), rowsperstrip=8),
    "32-bit integers above 255": tiff(NOISE[:, :, 0].astype(np.int32), rowsperstrip=8),
    "two pages": tiff(np.stack([SMALL[:, :, 0], SMALL[:, :, 1]]), tile=(32, 32), metadata=None),
    **{f"pillow {mode}": pillow(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F")},
    **{f"lzw {mode}": pillow(mode, compression="tiff_lzw") for mode in ("1", "L", "P", "RGBA", "CMYK", "I;16", "F")},
    "fax": pillow("1", compression="group4"),
    **{f"turned {turn}": pillow("RGB", turn, compression="tiff_lzw") for turn in range(2, 9)},
}  # fmt: skip
TURNED = {"planarconfig": "separate", "extratags": [(274, 3, 1, 8, True)]}
RAW_FILES = {
    "16 bits": (tiff(NOISE[:, :, 0], tile=(32, 32)), 1),
    "rgb": (tiff(SMALL[:, :, :3], photometric="rgb", rowsperstrip=20), 3),
    "rgb, 16 bits": (tiff(NOISE[:, :, :3], photometric="rgb", tile=(32, 32), compression="zstd"), 3),
    "5 samples": (tiff(NOISE[:, :, :5], planarconfig="contig", photometric="minisblack", rowsperstrip=7), 5),
    "5 planes": (tiff(PLANES, planarconfig="separate", photometric="minisblack", tile=(32, 32)), 5),
    "5 pages": (tiff(PLANES, photometric="minisblack", rowsperstrip=9, byteorder=">"), 5),
    "imagej": (tiff(PLANES, imagej=True, metadata={"axes": "CYX"}), 5),
    "ome": (tiff(PLANES, ome=True, metadata={"axes": "CYX"}, tile=(32, 32), compression="deflate"), 5),
    "ome, planes": (tiff(PLANES, ome=True, metadata={"axes": "CYX"}, planarconfig="separate", tile=(64, 64)), 5),
    "float64": (tiff(NOISE[:, :, 0] / 7, tile=(32, 32)), 1),
    "signed": (tiff(NOISE[:, :, 0].astype(np.int16), rowsperstrip=4), 1),
    "palette": (COLOR_FILES["palette"], 3),
    "white is 0, two pages": (tiff(PLANES[:2], photometric="miniswhite", tile=(32, 32)), 2),
    "turned": (pillow("I;16", 6), 1),
    "turned planes": (tiff(PLANES, photometric="minisblack", rowsperstrip=8, **TURNED), 5),
}  # fmt: skip


def assert_windows_equal(image: WindowedImage, whole: np.ndarray) -> None:
    assert image.shape == whole.shape
    for window in WINDOWS:
        if image.by_columns:
            window = Window(window.y0, window.x0, window.y1, window.x1)
        pixels = image[window.slices]
        assert pixels.dtype == whole.dtype and pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, whole[window.slices])


@pytest.mark.parametrize("name", COLOR_FILES)
def test_windows_of_color_images(name, tmp_path):
    path = tmp_path / "image.tif"
    path.write_bytes(COLOR_FILES[name])
    for source, order in ((path, "RGB"), (COLOR_FILES[name], "BGR")):
        image = open_windowed(source, order=order)
        whole = read_image(source, order)
        assert_windows_equal(image, whole)
        for height, width in ((40, 61), (1, 7), (300, 200)):
            expected = resize(whole, height, width).astype(int)
            assert np.abs(image.resized(height, width).astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(image.display(), read_image(source))
    assert size_for_tiles(path) == (whole.shape[1], whole.shape[0])
    assert_windows_equal(pickle.loads(pickle.dumps(image)), whole)
    assert_windows_equal(image.reordered("RGB"), whole[:, :, ::-1])


@pytest.mark.parametrize("name", RAW_FILES)
def test_windows_of_other_channels(name, tmp_path):
    content, channels = RAW_FILES[name]
    (tmp_path / "image.tif").write_bytes(content)
    whole = read_raw(tmp_path / "image.tif", channels)
    image = open_windowed(tmp_path / "image.tif", channels)
    assert_windows_equal(image, whole)
    np.testing.assert_allclose(image.resized(40, 61), resize(whole, 40, 61), rtol=1e-5, atol=0.01)
    np.testing.assert_array_equal(image.display(), to_rgb(whole))


@pytest.mark.parametrize(("photometric", "shown"), [("minisblack", 0), ("miniswhite", 255)])
def test_tiles_that_are_left_out_are_0(photometric, shown):
    stored = np.zeros((160, 192), np.uint8)
    stored[32:64, 32:96] = SMALL[:32, :64, 0]
    stored[:32, :32] = 9
    tiles = [stored[32 * (i // 6) :, 32 * (i % 6) :][:32, :32] for i in range(30)]
    buffer = io.BytesIO()
    kept = (tile if tile.any() else None for tile in tiles)
    options = {"photometric": photometric, "compression": "deflate", "predictor": True}
    tifffile.imwrite(buffer, kept, shape=stored.shape, dtype=np.uint8, tile=(32, 32), **options)
    image = open_windowed(buffer.getvalue())
    np.testing.assert_array_equal(image[:, :][:, :, 0], np.abs(shown - stored.astype(int)))
    raw = open_windowed(buffer.getvalue(), 1)
    np.testing.assert_array_equal(raw[:, :][:, :, 0], np.abs(shown - stored.astype(int)))


def test_a_gigapixel_image_needs_little_memory(tmp_path, monkeypatch):
    monkeypatch.undo()
    path, side, tile = tmp_path / "large.tif", 40_000, np.full((1008, 1008), 7, np.uint8)
    tiles = (tile if index in (0, 1599) else None for index in range(1600))
    tifffile.imwrite(path, tiles, shape=(side, side), dtype=np.uint8, tile=tile.shape, compression="deflate")
    tracemalloc.start()
    image = read_for_tiles(path)
    assert image.shape == (side, side, 3)
    assert (image[side - 600 :, side - 600 :] == 7).all()
    for x in range(0, side, 1000):
        assert not image[20_000:21_000, x : x + 1000].any()
    assert tracemalloc.get_traced_memory()[1] < 1.5 * windowed_images.CACHE_BYTES
    tracemalloc.stop()


def test_a_row_of_windows_decodes_each_strip_once(monkeypatch):
    monkeypatch.setattr(windowed_images, "CACHE_BYTES", 0)
    image = open_windowed(tiff(SMALL[:, :, :3], photometric="rgb", rowsperstrip=10, compression="deflate"))
    decoded = []
    decode = image._decode_block
    monkeypatch.setattr(image, "_decode_block", lambda row, column: decoded.append(row) or decode(row, column))
    for x in range(0, 200, 20):
        image[0:90, x : x + 20]
    assert decoded == sorted(set(decoded))


def test_files_that_are_read_as_a_whole(tmp_path, monkeypatch):
    Image.fromarray(SMALL[:, :, :3]).save(tmp_path / "image.png")
    one_strip = tiff(SMALL[:, :, :3], photometric="rgb", rowsperstrip=HEIGHT, compression="deflate")
    monkeypatch.setattr(large_images, "MAX_SEGMENT", 100 * WIDTH)
    for source in (tmp_path / "image.png", one_strip):
        assert open_windowed(source) is None
        np.testing.assert_array_equal(read_for_tiles(source), SMALL[:, :, :3])
        np.testing.assert_array_equal(read_for_tiles(source, 3), SMALL[:, :, :3].astype(np.float32))
    content = COLOR_FILES["tiles"]
    assert open_windowed(content, min_pixels=WIDTH * HEIGHT + 1) is None
    assert open_windowed(content, min_pixels=WIDTH * HEIGHT) is not None


def test_errors_name_the_file(tmp_path, monkeypatch):
    for path, message in ((tmp_path, "a folder"), (tmp_path / "no.tif", "no such file")):
        with pytest.raises(UserError, match=message):
            read_for_tiles(path)
    path, content = tmp_path / "image.tif", bytearray(COLOR_FILES["deflate tiles"])
    path.write_bytes(content[: len(content) // 2])  # the tags are before the tiles
    with pytest.raises(UserError, match=r"image.tif: not a readable image, corrupt or truncated"):
        read_for_tiles(path)
    content[-200:] = bytes(200)
    path.write_bytes(content)
    image = read_for_tiles(path)
    assert image[:20, :20].shape == (20, 20, 3)
    with pytest.raises(UserError, match=r"image.tif: not a readable image, corrupt"):
        image[:, :]
    path.write_bytes(RAW_FILES["5 planes"][0])
    with pytest.raises(UserError, match=r"image.tif has 5 channels, the model takes 3"):
        read_for_tiles(path, 3)
    with pytest.raises(UserError, match=r"INPUT\.FORMAT RAW reads it"):
        read_for_tiles(path)
    monkeypatch.setattr(large_images, "MAX_PIXELS", 1000)
    path.write_bytes(COLOR_FILES["tiles"])
    with pytest.raises(UserError, match="211x150 pixels, more than the limit of 1000"):
        read_for_tiles(path)


def test_mutated_files_are_read_or_refused():
    generator = np.random.default_rng(0)
    for name in ("deflate tiles", "uncompressed strips", "bigtiff", "lzw P"):
        for _ in range(60):
            content = bytearray(COLOR_FILES[name])
            where = generator.integers(0, len(content) if generator.random() < 0.5 else 400, 3)
            for place in where:
                content[place] = generator.integers(0, 256)
            with contextlib.suppress(UserError):
                image = read_for_tiles(bytes(content))
                if isinstance(image, WindowedImage):
                    image[: min(64, image.shape[0]), : min(64, image.shape[1])]
