import json

import pytest
from PIL import Image

from d2_maskrcnn import UserError
from d2_maskrcnn.data.formats import read, recognize

SQUARE = [[2, 3, 12, 3, 12, 11, 2, 11]]


def write(path, images, annotations=(), categories=("cat", "dog")):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images)],
        "annotations": list(annotations),
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories)],
    }
    path.write_text(json.dumps(content))
    return path


def annotation(number, image_id, category_id=0, **changes):
    return {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": SQUARE, **changes}


@pytest.fixture
def image(tmp_path):
    def make(name, turned=False):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (40, 30))
        exif = image.getexif()
        if turned:
            exif[0x0112] = 6
        image.save(path, exif=exif)
        return path

    return make


def test_no_images(tmp_path):
    dataset = read(write(tmp_path / "a.json", [], categories=()))
    assert (dataset.images, dataset.annotations, dataset.categories, dataset.dropped) == ([], [], [], [])
    with pytest.raises(UserError, match="no images"):
        dataset.image_root()


def test_entries_and_upright_sizes(tmp_path, image):
    paths = [image("images/a.jpg"), image("images/sub/b.jpg", turned=True)]
    crowd = annotation(9, 1, 1, iscrowd=1, segmentation={"size": [40, 30], "counts": [1200]}, bbox=[0, 0, 0, 0])
    dataset = read(write(tmp_path / "annotations" / "a.json", ["a.jpg", "sub\\b.jpg"], [annotation(7, 0), crowd]))
    assert [(each.path, each.name, each.width, each.height) for each in dataset.images] == [
        (paths[0], "a.jpg", 40, 30),
        (paths[1], "sub/b.jpg", 30, 40),
    ]
    first, second = dataset.annotations
    assert (first.segmentation, first.bbox, first.category_id) == (SQUARE, None, 0)
    assert (second.iscrowd, second.image_id, second.segmentation["counts"]) == (1, 1, [1200])
    assert [each.name for each in dataset.categories] == ["cat", "dog"]


def test_what_cannot_be_used_is_dropped_with_reasons(tmp_path, image):
    image("a.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    names = ["a.jpg", "text.jpg", "missing.jpg", "../../etc/passwd", "a.jpg", 5, 300 * "b" + ".jpg"]
    annotations = [annotation(1, 0), annotation(2, 1), annotation(3, 77), annotation(4, 0, 9), 3]
    dataset = read(write(tmp_path / "a.json", names, annotations))
    assert [each.name for each in dataset.images] == ["a.jpg"]
    assert [each.id for each in dataset.annotations] == [1]
    assert [(each.kind, each.where.rsplit(": ", 1)[1], each.reason.split(";")[0]) for each in dataset.dropped] == [
        ("image", "image 5", "a bad 'file_name'"),
        ("image", "image 1", "not a readable image"),
        ("image", "image 2", "no such file"),
        ("image", "image 3", "a path outside of the dataset's folder"),
        ("image", "image 4", "a file that another image has"),
        ("image", "image 6", "no such file"),
        ("annotation", "annotation 2", "its image was dropped"),
        ("annotation", "annotation 3", "unknown image_id"),
        ("annotation", "annotation 4", "unknown category_id"),
        ("annotation", "annotation at position 4", "not a JSON object"),
    ]


def test_roboflow_folders_become_splits(tmp_path, image):
    for folder in ("train", "valid"):
        image(f"{folder}/a.jpg")
        write(tmp_path / folder / "_annotations.coco.json", ["a.jpg"], [annotation(1, 0, 1)])
    assert recognize(tmp_path).format == "coco"
    dataset = read(tmp_path)
    assert [(each.id, each.split, each.source_id) for each in dataset.images] == [(1, "train", 0), (2, "val", 0)]
    assert [each.image_id for each in dataset.annotations] == [1, 2]
    assert [(each.id, each.name) for each in dataset.categories] == [(0, "cat"), (1, "dog")]


def test_categories_of_splits_are_joined_by_name(tmp_path, image):
    for folder, names in (("train", ["cat", "dog"]), ("test", ["dog", "cow"])):
        image(f"{folder}/a.jpg")
        write(tmp_path / folder / "_annotations.coco.json", ["a.jpg"], [annotation(1, 0, 0)], names)
    dataset = read(tmp_path)
    names = {each.id: each.name for each in dataset.categories}
    assert {names[each.category_id] for each in dataset.annotations} == {"cat", "dog"}
    assert sorted(names.values()) == ["cat", "cow", "dog"]


def test_official_layout(shared_dir):
    dataset = read(shared_dir / "data" / "coco_subset")
    assert dataset.splits() == ["train2017", "val2017"]
    assert (len(dataset.images), len(dataset.annotations), len(dataset.categories)) == (543, 4624, 80)
    assert not dataset.dropped


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"image_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}]', "detections in COCO's results format"),
        ("{", "not JSON"),
        ('{"a": 1}', "in no known format"),
    ],
)
def test_other_files(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        read(tmp_path / "a.json")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "b.json")


def test_absolute_names(tmp_path, image):
    first, second = image("here/a.jpg"), image("there/deep/b.jpg")
    dataset = read(write(tmp_path / "lists" / "all.json", [str(first), str(second)]))
    assert [(each.path, each.name) for each in dataset.images] == [(first, "here/a.jpg"), (second, "there/deep/b.jpg")]
    moved = read(write(tmp_path / "here" / "moved.json", ["/elsewhere/a.jpg", "a/none.jpg"]))
    assert [(each.path, each.name) for each in moved.images] == [(first, "a.jpg")]
