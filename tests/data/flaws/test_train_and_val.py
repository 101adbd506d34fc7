"""Parts of one dataset must have the same categories and no images in common."""

import json

import pytest
from PIL import Image, ImageEnhance

from d2_maskrcnn.data import check


@pytest.fixture
def parts(coco_folder, tmp_path):
    """``parts(*names, categories=None)``: check the folder with a second part of other images, and return its flaws."""

    def run(*names, categories=None):
        images = [
            {"id": number + 1, "file_name": name, "width": 40, "height": 30, **size_of(coco_folder.images / name)}
            for number, name in enumerate(names)
        ]
        data = {"images": images, "annotations": [], "categories": categories or coco_folder.data["categories"]}
        other = coco_folder.json_file.with_name("instances_val.json")
        other.write_text(json.dumps(data))
        report = check(coco_folder.json_file, other, images=coco_folder.images)
        return {each.kind: each for each in report.parts[1].flaws}

    return run


def size_of(path):
    with Image.open(path) as image:
        return {"width": image.width, "height": image.height}


def test_a_part_without_images(parts):
    assert set(parts()) == {"no-images"}


def test_the_same_file_and_a_copy(parts, coco_folder):
    (coco_folder.images / "copy.jpg").write_bytes((coco_folder.images / "1.jpg").read_bytes())
    found = parts("0.jpg", "copy.jpg")
    assert set(found) == {"image-shared"}
    assert found["image-shared"].examples == ("0.jpg and 0.jpg", "copy.jpg and 1.jpg")


def test_an_image_that_was_scaled_and_brightened(parts, coco_folder):
    smooth = Image.open(coco_folder.images / "2.jpg").resize((10, 10)).resize((200, 150), Image.Resampling.BICUBIC)
    smooth.resize((50, 50)).save(coco_folder.images / "2.jpg")
    ImageEnhance.Brightness(smooth).enhance(1.1).save(coco_folder.images / "near.jpg", quality=60)
    Image.radial_gradient("L").save(coco_folder.images / "other.png")
    Image.new("RGB", (64, 64), "white").save(coco_folder.images / "white.png")
    Image.new("RGB", (64, 64), "gray").save(coco_folder.images / "3.jpg")  # nothing that could be compared
    found = parts("near.jpg", "other.png", "white.png")
    assert found["image-near-shared"].examples == ("near.jpg and 2.jpg",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("cat", "fish"), "number 2 by id is 'fish', and 'dog' in "), (("cat",), "number 2 by id is none, and ")],
)
def test_other_categories(parts, names, expected):
    found = parts("0.jpg", categories=[{"id": 5 + number, "name": name} for number, name in enumerate(names)])
    assert expected in found["categories-differ"].examples[0]
