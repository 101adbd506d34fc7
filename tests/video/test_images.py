import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.sources.images import ImageSource, find_images, image_ids

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
    with pytest.raises(UserError, match="the folder contains no images"):
        find_images([str(tmp_path)])


def test_folders_files_and_globs(folder):
    names = [p.name for p in find_images([str(folder)])]
    assert names == ["a.png", "b.jpg", "c.webp"]
    assert [p.name for p in find_images([str(folder / "*.[jp]*g")])] == ["a.png", "b.jpg"]
    assert [p.name for p in find_images([str(folder / "b.jpg"), str(folder)])] == ["b.jpg", "a.png", "c.webp"]


@pytest.mark.parametrize(("name", "message"), [("*.gif", "no image matches"), ("d.jpg", "no such file")])
def test_no_such_images(folder, name, message):
    with pytest.raises(UserError, match=message):
        find_images([str(folder / name)])


def test_a_video_is_not_an_image(folder):
    (folder / "video.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="is a video"):
        find_images([str(folder / "video.mp4")])
    assert "video.mp4" not in [p.name for p in find_images([str(folder)])]


def test_broken_links_and_other_files(folder):
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    for name in ("data.h5", ".hidden.jpg", "chart.eps"):
        (folder / name).write_bytes(b"data")
    source = ImageSource(find_images([str(folder)]))
    assert len(list(source)) == 3
    assert len(source.broken) == 1 and "gone.jpg" in source.broken[0]


def test_broken_images_are_reported_and_skipped(folder, caplog):
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "e.png").write_bytes(b"")
    source = ImageSource(find_images([str(folder)]))
    assert [frame.name[-6:] for frame in source] == ["/a.png", "c.webp"]
    assert len(source.broken) == 2 and "b.jpg" in source.broken[0]
    assert "b.jpg" in caplog.text


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        ([], []),
        (["a/000000001000.jpg", "b/7.png"], [1000, 7]),
        (["12.png", "012.png"], [1, 2]),  # the same number twice
        (["1.png", "x.png"], [1, 2]),
        (["\u00b2\u00b3.png", "\u0663.png"], [1, 2]),  # digits that aren't ASCII
    ],
)
def test_image_ids_are_unique(names, ids):
    assert image_ids(names) == ids
