import pytest
from PIL import Image

from d2_maskrcnn import UserError
from d2_maskrcnn.data import check_coco_json


def test_missing_image_folder(coco_folder):
    with pytest.raises(UserError, match=r"nowhere: no such folder\); expected the 4 images"):
        check_coco_json(coco_folder.json_file, coco_folder.images / "nowhere")


def test_missing_images_are_counted(coco_folder):
    for number in (1, 3):
        (coco_folder.images / f"{number}.jpg").unlink()
    message = coco_folder.error()
    assert "2 of 4 images missing from" in message
    assert "(1.jpg, 3.jpg)" in message


@pytest.mark.parametrize(
    ("write", "reason"),
    [(lambda name: f"deep\\{name}", "has backslashes"), (lambda name: f"deep/{name[0]}%2Ejpg", "is URL-encoded")],
)
def test_names_that_other_programs_write(coco_folder, write, reason):
    (coco_folder.images / "deep").mkdir()
    for image in coco_folder.data["images"]:
        name = image["file_name"]
        (coco_folder.images / name).rename(coco_folder.images / "deep" / name)
        image["file_name"] = write(name)
    message = coco_folder.error()
    assert f"{coco_folder.images / 'deep' / '0.jpg'} exists, but the name in the JSON {reason}" in message
    assert "write 'file_name' as 'deep/0.jpg'" in message


def test_images_in_folders_of_their_own(coco_folder):
    (coco_folder.images / "deep").mkdir()
    (coco_folder.images / "0.jpg").rename(coco_folder.images / "deep" / "0.jpg")
    coco_folder.data["images"][0]["file_name"] = "deep/0.jpg"
    coco_folder.write()
    check_coco_json(coco_folder.json_file, coco_folder.images)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "deep/../../secret.png", "..", "."])
def test_images_outside_of_their_folder(coco_folder, name):
    Image.new("RGB", (40, 30)).save(coco_folder.images.parent / "secret.png")
    coco_folder.data["images"][0]["file_name"] = name
    assert f"1 image outside of {coco_folder.images} ({name})" in coco_folder.error()


def test_absolute_names_inside_of_the_folder(coco_folder):
    for image in coco_folder.data["images"]:
        image["file_name"] = str(coco_folder.images / image["file_name"])
    coco_folder.write()
    check_coco_json(coco_folder.json_file, coco_folder.images)


def test_images_that_are_corrupt_or_of_another_size(coco_folder):
    (coco_folder.images / "0.jpg").write_bytes(b"no image")
    Image.new("RGB", (31, 41)).save(coco_folder.images / "1.jpg")
    turned = Image.new("RGB", (32, 64))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(coco_folder.images / "3.jpg", exif=exif)  # shown as 64x32, as the JSON says
    message = coco_folder.error()
    assert f"1 image in {coco_folder.images} not readable" in message
    assert "0.jpg: not a readable image; expected JPEG" in message
    assert "1 image with another size than in the JSON (1.jpg is 31x41, the JSON says 30x40)" in message
