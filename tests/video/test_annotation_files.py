import csv
import json

import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn import UserError
from d2_maskrcnn.cli.main import main
from d2_maskrcnn.data.formats import ImageFile, read
from d2_maskrcnn.data.formats.predictions import simplify, uncertainty
from d2_maskrcnn.results import to_records
from d2_maskrcnn.structures.masks import decode_segmentation, encode_rle
from d2_maskrcnn.video.frame import Frame
from d2_maskrcnn.video.sinks.annotation_files import AnnotationFiles

NAMES, IDS = ["cat", "dog"], [3, 7]


@pytest.fixture
def frames(tmp_path, make_detections):
    """Three images: without detections, with two, and with one."""
    boxes = [[], [[2, 3, 12, 11], [20, 5, 30, 25]], [[2, 3, 12, 11]]]
    made = []
    for index, each in enumerate(boxes):
        path = tmp_path / "in" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
        detections = make_detections(each, (30, 40), scores=[0.9, 0.6][: len(each)], classes=[0, 1][: len(each)])
        frame = Frame(np.zeros((30, 40, 3), np.uint8), index, name=str(path), detections=detections)
        frame.records = to_records(detections, NAMES, IDS)
        frame.uncertainty = uncertainty(detections.scores)
        made.append(frame)
    return made


def write(frames, folder, to, **options):
    sink = AnnotationFiles([frame.name for frame in frames], folder, to, NAMES, IDS, **options)
    for frame in frames:
        sink.write(frame)
    sink.close()


@pytest.mark.parametrize("to", ["coco", "labelme", "yolo", "cvat", "label-studio"])
def test_annotations_of_each_format(frames, tmp_path, to):
    write(frames, tmp_path / "out", to)
    dataset = read(tmp_path / "out")
    assert not dataset.dropped
    names = {category.id: category.name for category in dataset.categories}
    assert list(names.values()) == NAMES
    images = {image.id: image.path.name for image in dataset.images}
    assert sorted((images[each.image_id], names[each.category_id]) for each in dataset.annotations) == [
        ("1.png", "cat"), ("1.png", "dog"), ("2.png", "cat"),
    ]  # fmt: skip
    assert all(type(each.segmentation) is list and len(each.segmentation[0]) == 8 for each in dataset.annotations)


def test_coco_ids_and_scores(frames, tmp_path):
    write(frames, tmp_path / "out", "coco")
    data = json.loads((tmp_path / "out" / "annotations" / "instances_default.json").read_text())
    assert [image["id"] for image in data["images"]] == [1, 2, 3]
    assert [(each["id"], each["image_id"], each["category_id"], each["score"]) for each in data["annotations"]] == [
        (1, 2, 3, 0.9), (2, 2, 7, 0.6), (3, 3, 3, 0.9),
    ]  # fmt: skip


def test_ranking(frames, tmp_path):
    write(frames, tmp_path / "out", "label-studio", rank=True)
    rows = list(csv.DictReader((tmp_path / "out" / "ranking.csv").open()))
    assert [(row["rank"], row["file"][-5:], row["detections"]) for row in rows] == [
        ("1", "1.png", "2"), ("2", "2.png", "1"), ("3", "0.png", "0"),
    ]  # fmt: skip
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert [task["data"]["image"][-5:] for task in tasks] == ["1.png", "2.png", "0.png"]
    write(frames, tmp_path / "only", None, rank=True)
    assert [path.name for path in (tmp_path / "only").iterdir()] == ["ranking.csv"]


def test_uncertainty():
    assert uncertainty(np.zeros(0)) == 0
    assert uncertainty(np.array([0.5])) == 1
    assert uncertainty(np.array([1.0, 0.05])) == pytest.approx(0, abs=1e-9)
    assert uncertainty(np.array([0.9])) < uncertainty(np.array([0.9, 0.6])) < 1


def test_what_is_refused_before_the_first_image(frames, tmp_path):
    names = [frame.name for frame in frames]
    with pytest.raises(UserError, match="download the image"):
        AnnotationFiles(["https://example.org/a.png"], tmp_path / "out", "coco", NAMES, IDS)
    write(frames, tmp_path / "out", "coco")
    with pytest.raises(UserError, match="exists"):
        AnnotationFiles(names, tmp_path / "out", "coco", NAMES, IDS)
    AnnotationFiles(names, tmp_path / "out", "coco", NAMES, IDS, overwrite=True)
    labelme = AnnotationFiles(names, tmp_path / "in", "labelme", NAMES, IDS)  # beside the images, which stay
    labelme.write(frames[1])
    labelme.close()
    assert not (tmp_path / "in" / "1.png").is_symlink()
    assert len(read(tmp_path / "in").annotations) == 2


@pytest.mark.parametrize("min_iou", [0.9, 0.98, 1.0])
def test_polygons_lose_no_more_than_stated(tmp_path, min_iou):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :300]
    mask = (x - 100) ** 2 + (y - 90) ** 2 < 60**2 + rng.integers(-300, 300, (200, 300))
    mask |= (abs(x - 220) < 40) & (abs(y - 100) < 30)
    image = ImageFile(1, tmp_path / "a.png", "a.png", 300, 200)
    rle = encode_rle(mask)
    polygons = simplify(rle, image, min_iou)
    if min_iou == 1:  # the noise has left holes
        assert polygons is rle
        return
    found = decode_segmentation(polygons, 200, 300)
    assert (found & mask).sum() >= min_iou * (found | mask).sum()
    assert sum(map(len, polygons)) < 500
    mask[60:110, 70:130] = False
    assert isinstance(simplify(encode_rle(mask), image, min_iou), dict)


def test_the_command(repo_dir, tmp_path, capsys):
    example = repo_dir / "d2_maskrcnn" / "example"
    command = [
        "predict",
        "--weights",
        str(example / "model.pth"),
        "--rank",
        "uncertain",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--save-as", "coco", str(example / "shapes_1.jpg"), str(example / "shapes_2.jpg")]) == 0
    dataset = read(tmp_path / "o")
    assert len(dataset.images) == 2
    assert len(dataset.annotations) > 4
    assert all(each.score >= 0.5 for each in dataset.annotations)
    assert (tmp_path / "o" / "ranking.csv").is_file()
    assert main([*command, "--save-as", "coco", str(tmp_path / "a.mp4")]) == 2
    assert "are for images" in capsys.readouterr().err
