import json
import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from pycocotools.coco import COCO

from d2_maskrcnn.data import check_coco_json
from d2_maskrcnn.data.flaws.find_flaws import Purpose


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("datasets/prepare_shapes.py")


@pytest.fixture(scope="module")
def shapes(script, tmp_path_factory):
    """A dataset that is large enough to contain crowds, tiny objects and occlusions."""
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    script.draw_dataset(folder, train=80, val=2, size=96, seed=1)
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_is_valid_coco_data(shapes, split):
    json_file = shapes / "annotations" / f"instances_{split}.json"
    table = check_coco_json(json_file, shapes / split, Purpose(polygons_only=True)).table
    assert [each["name"] for each in table.categories] == ["circle", "square", "triangle", "star"]


def test_contains_crowds_tiny_and_occluded_objects(shapes):
    coco = COCO(shapes / "annotations" / "instances_train.json")
    objects = [each for each in coco.anns.values() if not each["iscrowd"]]
    crowds = [each for each in coco.anns.values() if each["iscrowd"]]
    assert {each["category_id"] for each in objects} == {1, 2, 3, 4}
    assert len(crowds) >= 2
    assert all(isinstance(each["segmentation"], dict) for each in crowds)
    assert any(each["area"] < 0.003 * 96**2 for each in objects)  # tiny
    edges = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for each in objects)]
    assert any(x0 == 0 or y0 == 0 or x1 == 96 or y1 == 96 for x0, y0, x1, y1 in edges)  # cut off by the border
    covered = [mask_util.iou([a["bbox"]], [b["bbox"]], [0])[0, 0] > 0 for a, b in pairs(coco, objects)]
    assert sum(covered) > 10  # shapes occlude one another


def pairs(coco, objects):
    for image_id in coco.imgs:
        here = [each for each in objects if each["image_id"] == image_id]
        yield from ((a, b) for i, a in enumerate(here) for b in here[i + 1 :])


def test_masks_of_an_image_do_not_overlap_and_fit_their_boxes(shapes):
    coco = COCO(shapes / "annotations" / "instances_train.json")
    for image_id in coco.imgs:
        annotations = coco.imgToAnns[image_id]
        masks = np.array([coco.annToMask(each) for each in annotations if not each["iscrowd"]])
        if len(masks):
            assert (masks.sum(axis=0) > 1).mean() < 0.004  # sub-pixel contours round to the same pixel here and there
        for annotation in annotations:
            ys, xs = np.nonzero(coco.annToMask(annotation))
            x, y, width, height = annotation["bbox"]
            # the tip of a star or triangle may be too thin for a pixel
            np.testing.assert_allclose([xs.min(), ys.min()], [x, y], atol=2)
            np.testing.assert_allclose([xs.max() + 1, ys.max() + 1], [x + width, y + height], atol=2)
            assert annotation["area"] == len(xs)


def test_masks_cover_the_shapes(shapes):
    """A shape has one saturated color, the background is gray."""
    coco = COCO(shapes / "annotations" / "instances_train.json")
    inside, outside = [], []
    for image in coco.imgs.values():
        if any(each["iscrowd"] for each in coco.imgToAnns[image["id"]]):
            continue
        pixels = np.array(Image.open(shapes / "train" / image["file_name"])).astype(int)
        saturation = (pixels.max(axis=2) - pixels.min(axis=2)) / pixels.max(axis=2).clip(1)
        anything = np.zeros(saturation.shape, bool)
        for annotation in coco.imgToAnns[image["id"]]:
            anything |= coco.annToMask(annotation).astype(bool)
        inside.append(saturation[anything])
        outside.append(saturation[~anything])
    assert (np.concatenate(inside) > 0.45).mean() > 0.97
    assert (np.concatenate(outside) < 0.45).mean() > 0.97


def test_depends_only_on_the_seed(script, shapes, tmp_path):
    script.draw_dataset(tmp_path / "again", train=80, val=2, size=96, seed=1)
    assert contents(tmp_path / "again") == contents(shapes)
    script.draw_dataset(tmp_path / "other", train=3, val=2, size=96, seed=2)
    images = [contents(folder / "train") for folder in (shapes, tmp_path / "other")]
    assert all(images[0][name] != image for name, image in images[1].items())


def test_a_larger_dataset_begins_with_a_smaller_one(script, shapes, tmp_path):
    script.draw_dataset(tmp_path / "small", train=3, val=1, size=96, seed=1)
    small, large = contents(tmp_path / "small" / "train"), contents(shapes / "train")
    assert len(small) == 3
    assert all(large[name] == image for name, image in small.items())


def test_an_earlier_dataset_is_kept_or_replaced(script, tmp_path):
    folder = tmp_path / "shapes"
    assert script.draw_dataset(folder, train=2, val=1, size=32, seed=0)
    before = contents(folder)
    assert not script.draw_dataset(folder, train=2, val=1, size=32, seed=0)
    assert contents(folder) == before
    assert script.draw_dataset(folder, train=1, val=1, size=32, seed=0)
    assert len(list((folder / "train").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_other_folders_are_refused_or_renamed(script, tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    assert script.draw_dataset(folder, train=1, val=1, size=32, seed=0)  # an empty folder may be used
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not made by prepare_shapes"):
        script.draw_dataset(mine, train=1, val=1, size=32, seed=0)
    script.draw_dataset(mine, train=1, val=1, size=32, seed=0, overwrite=True)
    assert (tmp_path / "mine.old" / "thesis.txt").read_text() == "precious"
    assert (mine / "train").is_dir()


def test_a_failure_leaves_nothing_behind(script, tmp_path, monkeypatch):
    real = script.draw_split

    def full_disk(root, split, *arguments):
        if split == "val":
            raise OSError(28, "No space left on device")
        real(root, split, *arguments)

    monkeypatch.setattr(script, "draw_split", full_disk)
    assert script.main(["--output", str(tmp_path / "shapes"), "--train", "1", "--val", "1", "--size", "32"]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--train", "0"], ["--size", "8"], ["--seed", "-1"]])
def test_bad_numbers_are_one_line(repo_dir, tmp_path, words):
    command = [
        sys.executable,
        str(repo_dir / "datasets" / "prepare_shapes.py"),
        "--output",
        str(tmp_path / "s"),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("prepare_shapes.py: train=")
    assert done.stderr.count("\n") == 1


def test_command_line(repo_dir, tmp_path):
    command = [sys.executable, str(repo_dir / "datasets" / "prepare_shapes.py"), "--output", str(tmp_path / "s")]
    done = subprocess.run([*command, "--train", "2", "--val", "1", "--size", "32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 training and 1 validation images" in done.stdout
    assert len(json.loads((tmp_path / "s" / "annotations" / "instances_train.json").read_text())["images"]) == 2
