import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.sources.images import ImageSource, find_images, read_image

RGB = np.zeros((20, 30, 3), np.uint8)
RGB[:10, :15] = (250, 10, 20)  # the top left quarter is red
RGB[10:, 15:] = (20, 30, 240)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.png", "c.webp"):
        Image.fromarray(RGB).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no images in this folder"):
        find_images([str(tmp_path)])


def test_folders_files_and_globs(folder):
    names = [p.name for p in find_images([str(folder)])]
    assert names == ["a.png", "b.jpg", "c.webp"]
    assert [p.name for p in find_images([str(folder / "*.[jp]*g")])] == ["a.png", "b.jpg"]
    assert [p.name for p in find_images([str(folder / "b.jpg"), str(folder)])] == ["b.jpg", "a.png", "c.webp"]


@pytest.mark.parametrize(("name", "said"), [("*.gif", "no image matches"), ("d.jpg", "no such file")])
def test_what_is_not_there(folder, name, said):
    with pytest.raises(UserError, match=said):
        find_images([str(folder / name)])


def test_a_video_is_no_image(folder):
    (folder / "film.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="--video-input"):
        find_images([str(folder / "film.mp4")])
    assert "film.mp4" not in [p.name for p in find_images([str(folder)])]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The stored pixels are turned so that turning them back as EXIF says gives the upright image."""
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "p.png", exif=exif)
    assert (read_image(tmp_path / "p.png") == RGB[:, :, ::-1]).all()


def to_mode(mode: str) -> Image.Image:
    grey = np.full((20, 30), 128, np.uint8)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "RGBA":
        return Image.fromarray(np.dstack([RGB, np.full((20, 30), 255, np.uint8)]))
    if mode in ("L", "1", "LA"):
        return Image.fromarray(grey if mode != "1" else grey * 0 + 255).convert(mode)
    return Image.fromarray(RGB).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("L", ".png", (128, 128, 128)),
        ("1", ".png", (255, 255, 255)),
        ("LA", ".png", (128, 128, 128)),
        ("I;16", ".png", (128, 128, 128)),
        ("I;16", ".tif", (128, 128, 128)),
        ("P", ".png", (20, 10, 250)),
        ("RGBA", ".png", (20, 10, 250)),
        ("CMYK", ".jpg", (20, 10, 250)),
        ("CMYK", ".tif", (20, 10, 250)),
    ],
)
def test_colour_formats(tmp_path, mode, suffix, expected):
    to_mode(mode).save(tmp_path / f"p{suffix}")
    image = read_image(tmp_path / f"p{suffix}")
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.abs(image[4, 6].astype(int) - expected).max() <= (40 if mode in ("CMYK", "P") else 2)


@pytest.mark.parametrize(
    ("stored", "suffix", "expected"),
    [
        (np.full((4, 5), 200, np.uint16), ".png", 1),  # a dark image stays dark
        (np.full((4, 5), 200, np.uint16), ".tif", 1),
        (np.full((4, 5), 0.5, np.float32), ".tif", 128),
        (np.full((4, 5), 100.0, np.float32), ".tif", 100),
        (np.full((4, 5), 70000, np.int32), ".tif", 255),
    ],
    ids=str,
)
def test_more_than_8_bits(tmp_path, stored, suffix, expected):
    Image.fromarray(stored).save(tmp_path / f"p{suffix}")
    assert (read_image(tmp_path / f"p{suffix}") == expected).all()


def test_too_many_pixels(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    Image.new("L", (25, 30)).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").shape == (30, 25, 3)
    assert not recwarn.list  # a warning would be two lines about a bomb
    Image.new("L", (25, 40)).save(tmp_path / "larger.png")
    with pytest.raises(UserError, match="scale it down"):
        read_image(tmp_path / "larger.png")


def test_links_that_lead_nowhere_and_files_that_are_no_images(folder):
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    for name in ("data.h5", ".hidden.jpg", "chart.eps"):
        (folder / name).write_bytes(b"data")
    source = ImageSource(find_images([str(folder)]))
    assert len(list(source)) == 3
    assert len(source.broken) == 1 and "gone.jpg" in source.broken[0]


def test_what_is_transparent_is_white(tmp_path):
    Image.fromarray(np.dstack([RGB, np.zeros((20, 30), np.uint8)])).save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png") == 255).all()


def test_broken_images_are_reported_and_the_rest_goes_on(folder, caplog):
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "e.png").write_bytes(b"")
    source = ImageSource(find_images([str(folder)]))
    assert [frame.name[-6:] for frame in source] == ["/a.png", "c.webp"]
    assert len(source.broken) == 2 and "b.jpg" in source.broken[0]
    assert "b.jpg" in caplog.text
