"""Each kind of flaw, planted alone in a valid dataset, is found and nothing else is invented."""

import json
import shutil

import pytest
from PIL import Image

from d2_maskrcnn import add_d2_maskrcnn_config
from d2_maskrcnn.data import check, fix
from d2_maskrcnn.data.flaws.entry_repairs import REPAIRS
from detectron2.config import get_cfg

SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 11.0, 2.0, 11.0]
ALWAYS = {"category-rare", "image-empty"}  # notes about the valid dataset of four small images


def annotation(**changes):
    return lambda folder: folder.data["annotations"][0].update(changes)


def image(**changes):
    return lambda folder: folder.data["images"][0].update(changes)


def category(**changes):
    return lambda folder: folder.data["categories"][0].update(changes)


def more(key, **entry):
    return lambda folder: folder.data[key].append(entry)


def without(key, name):
    return lambda folder: folder.data[key][0].pop(name)


def polygon(points, **changes):
    return annotation(segmentation=[points], **changes)


def many(count, **changes):
    def plant(folder):
        boxes = [[x, y, 4, 4] for y in range(0, 48, 4) for x in range(0, 48, 4)]
        for number, (x, y, w, h) in enumerate(boxes[:count]):
            points = [x, y, x + w, y, x + w, y + h, x, y + h]
            values = {"bbox": [x, y, w, h], "area": 16, "segmentation": [points], **changes}
            folder.data["annotations"].append(folder.annotation(100 + number, 12, 5, **values))

    return plant


def truncated(folder):
    path = folder.images / "0.jpg"
    path.write_bytes(path.read_bytes()[:-500])


def rotated(folder):
    """The file is stored as 40x30, as the JSON says, but shown as 30x40."""
    pixels = Image.open(folder.images / "0.jpg")
    exif = pixels.getexif()
    exif[0x0112] = 6
    pixels.save(folder.images / "0.jpg", exif=exif)


def upright(folder):
    rotated(folder)
    folder.data["images"][0].update(width=30, height=40)


def corners_without_masks(folder):
    """Boxes of two corners in a dataset without masks."""
    folder.data["annotations"] = [
        {"id": n + 1, "image_id": 12, "category_id": 5, "area": 400, "iscrowd": 0, "bbox": [20 + n, 15, 40, 35]}
        for n in range(8)
    ]


PLANTED = {
    "not-an-object": lambda folder: folder.data["annotations"].append([1, 2]),
    "id-missing": without("annotations", "id"),
    "id-invalid": annotation(id="x"),
    "file-name-missing": without("images", "file_name"),
    "file-name-invalid": image(file_name=""),
    "width-missing": without("images", "width"),
    "width-invalid": image(width=0),
    "height-missing": without("images", "height"),
    "height-invalid": image(height=30.5),
    "name-missing": without("categories", "name"),
    "name-invalid": category(name=""),
    "image-id-missing": without("annotations", "image_id"),
    "image-id-invalid": annotation(image_id="10"),
    "category-id-missing": without("annotations", "category_id"),
    "category-id-invalid": annotation(category_id=None),
    "bbox-missing": without("annotations", "bbox"),
    "bbox-invalid": annotation(bbox=[1, 2, 3]),
    "area-missing": without("annotations", "area"),
    "area-invalid": annotation(area=float("nan")),
    "iscrowd-missing": without("annotations", "iscrowd"),
    "iscrowd-invalid": annotation(iscrowd=7),
    "ignore-invalid": annotation(ignore=1),
    "no-images": lambda folder: folder.data.update(images=[]),
    "no-categories": lambda folder: folder.data.update(categories=[]),
    "no-annotations": lambda folder: folder.data.update(annotations=[]),
    "image-id-repeated": lambda folder: folder.data["images"].append(dict(folder.data["images"][3])),
    "annotation-id-repeated": annotation(id=2),
    "category-id-repeated": lambda folder: folder.data["categories"].append({"id": 5, "name": "cat"}),
    "category-name-repeated": more("categories", id=100, name="cat"),
    "category-name-similar": more("categories", id=100, name=" Cat"),
    "category-unnamed": category(name="  "),
    "category-unused": more("categories", id=100, name="fish"),
    "image-repeated": lambda folder: folder.data["images"].append({**folder.data["images"][0], "id": 99}),
    "image-unknown": annotation(image_id=77),
    "category-unknown": annotation(category_id=77),
    "annotation-id-zero": annotation(id=0),
    "annotation-repeated": lambda folder: folder.data["annotations"].append(folder.annotation(50, 10, 5)),
    "class-imbalance": many(144),
    "box-not-finite": annotation(bbox=[float("nan"), 3, 10, 8]),
    "box-no-area": annotation(bbox=[2, 3, 0, 8]),
    "box-outside": annotation(bbox=[40, 3, 5, 8]),
    "box-far-beyond": annotation(bbox=[2, 3, 1e9, 8]),
    "box-corners": polygon([15, 12, 22, 12, 22, 18, 15, 18], bbox=[15, 12, 22, 18], area=42),
    "box-beyond": polygon([30, 3, 40, 3, 40, 11, 30, 11], bbox=[30, 3, 15, 8]),
    "box-normalized": annotation(bbox=[0.05, 0.1, 0.25, 0.27]),
    "box-differs": annotation(bbox=[2, 3, 25, 25]),
    "area-impossible": annotation(area=9999),
    "area-doubtful": annotation(area=121),
    "segmentation-missing": annotation(segmentation=[]),
    "segmentation-invalid": polygon([1, 2, 3, 4, 5, "x"]),
    "polygon-points": annotation(segmentation=[SQUARE, [1, 2, 3, 4]]),
    "polygon-not-finite": polygon([2, 3, 12, 3, 12, float("inf")]),
    "polygon-far-beyond": polygon([2, 3, 1e9, 3, 12, 11]),
    "polygon-outside": polygon([50, 3, 60, 3, 60, 11]),
    "polygon-no-area": polygon([2, 3, 2, 5, 2, 11]),
    "polygon-normalized": polygon([0.05, 0.1, 0.3, 0.1, 0.3, 0.37, 0.05, 0.37]),
    "polygon-beyond": polygon([30, 3, 45, 3, 45, 11, 30, 11], bbox=[30, 3, 10, 8]),
    "polygon-crossing": polygon([2, 3, 12, 11, 12, 3, 2, 11]),
    "mask-outside-box": annotation(bbox=[25, 20, 10, 8]),
    "rle-size": annotation(segmentation={"size": [40, 30], "counts": [1200]}),
    "rle-runs": annotation(segmentation={"size": [30, 40], "counts": [5, 6]}),
    "rle-empty": annotation(segmentation={"size": [30, 40], "counts": [1200]}),
    "image-too-large": lambda folder: folder.data["images"][3].update(width=10**6, height=10**6),
    "image-missing": lambda folder: (folder.images / "0.jpg").unlink(),
    "image-unreadable": lambda folder: (folder.images / "0.jpg").write_bytes(b"no image"),
    "image-truncated": truncated,
    "image-size": image(width=80, height=60),
    "image-rotated": rotated,
    "image-exif": upright,
    "image-duplicate": lambda folder: [
        shutil.copy(folder.images / "3.jpg", folder.images / "copy.jpg"),
        folder.data["images"].append({**folder.data["images"][3], "id": 99, "file_name": "copy.jpg"}),
    ],
    "too-many-objects": many(101),
}
# What follows from a planted flaw by necessity: without its image, for example, a category has no objects.
CONSEQUENCES = {
    "no-images": {"image-unknown", "image-folder-missing"},
    "no-categories": {"category-unknown"},
    "image-id-repeated": {"image-repeated"},
    "category-id-repeated": {"category-name-repeated"},
    "class-imbalance": {"too-many-objects"},
    "too-many-objects": {"class-imbalance"},
}


def kinds(report):
    return {each.kind for part in report.parts for each in part.flaws}


def test_a_valid_dataset(coco_folder):
    report = check(coco_folder.json_file)
    assert kinds(report) == ALWAYS
    assert not report.has_errors


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_flaws_are_found(coco_folder, kind, tmp_path):
    PLANTED[kind](coco_folder)
    coco_folder.write()
    report = check(coco_folder.json_file, images=coco_folder.images)
    assert kind in kinds(report)
    allowed = {kind, *ALWAYS, *CONSEQUENCES.get(kind, set()), "category-unused"}
    assert kinds(report) <= allowed
    json.dumps(report.as_dict())
    if kind in REPAIRS:
        [fixed] = fix(report, tmp_path / "fixed")
        assert fixed.actions
        again = check(fixed.path)
        assert kind not in kinds(again)
        assert not again.has_errors, str(again)


def test_corners_without_masks(coco_folder):
    corners_without_masks(coco_folder)
    coco_folder.write()
    cfg = get_cfg()  # without masks
    add_d2_maskrcnn_config(cfg)
    assert "box-corners" in kinds(check(coco_folder.json_file, cfg=cfg))


def test_the_documentation_names_every_kind(repo_dir):
    text = (repo_dir / "docs" / "check.md").read_text()
    schema = {kind for kind in REPAIRS if kind.endswith(("-missing", "-invalid"))} - {"image-missing"}
    for kind in {*PLANTED, *REPAIRS, *ALWAYS} - schema:
        assert f"`{kind}`" in text
