from pathlib import Path

import numpy as np
import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, ImageFile
from d2_maskrcnn.data.splitting import assign_parts, describe_parts, split


def dataset_of(classes_of_images, names=None):
    """A dataset whose image i has one object of each class in ``classes_of_images[i]``; no files are needed."""
    names = names or [f"{number}.jpg" for number in range(len(classes_of_images))]
    images = [ImageFile(i + 1, Path("/data") / name, name, 64, 48) for i, name in enumerate(names)]
    count = 1 + max((c for classes in classes_of_images for c in classes), default=0)
    annotations = [
        Annotation(i + 1, c + 1, [[1, 1, 9, 1, 9, 9]]) for i, classes in enumerate(classes_of_images) for c in classes
    ]
    return Dataset("test", "coco", images, [Category(c + 1, f"class {c}") for c in range(count)], annotations)


def test_no_images():
    with pytest.raises(UserError, match="0 images in 0 groups cannot be split into 2 parts"):
        split(dataset_of([]), [80, 20])


def test_images_without_objects():
    train, val = split(dataset_of([[]] * 10), [80, 20])
    assert (len(train.images), len(val.images)) == (8, 2)
    assert {image.split for image in val.images} == {"val"}


def test_every_image_and_annotation_is_in_exactly_one_part():
    dataset = dataset_of([[0], [1], [0, 1], [], [1, 1], [0]] * 5)
    parts = split(dataset, [60, 20, 20])
    assert sorted(image.id for part in parts for image in part.images) == list(range(1, 31))
    assert sum(len(part.annotations) for part in parts) == len(dataset.annotations)
    for part in parts:
        ids = {image.id for image in part.images}
        assert all(annotation.image_id in ids for annotation in part.annotations)
        assert len(part.categories) == 2


def test_the_mix_of_classes_is_the_same_in_each_part():
    rng = np.random.default_rng(0)
    counts = rng.poisson([3.0, 0.3, 0.05], (1000, 3))
    part = assign_parts(counts, np.arange(1000), np.array([0.7, 0.2, 0.1]), seed=0)
    for number, share in enumerate([0.7, 0.2, 0.1]):
        assert (part == number).mean() == pytest.approx(share, abs=0.005)
        assert counts[part == number].sum(axis=0) / counts.sum(axis=0) == pytest.approx([share] * 3, abs=0.02)


def test_a_class_in_few_images_is_in_every_part():
    train, val = split(dataset_of([[0]] * 50 + [[1]] * 2), [90, 10])
    for part in (train, val):
        assert sum(annotation.category_id == 2 for annotation in part.annotations) == 1


def test_seeds():
    def names(seed):
        return [image.name for image in split(dataset_of([[0]] * 20), [0.5, 0.5], seed)[1].images]

    assert names(0) == names(0)
    assert names(0) != names(1)


@pytest.mark.parametrize(("group_by", "groups"), [("folder", 4), (r"^(\w)", 4), (r"\w/", 4), (r"_(\d)", 3)])
def test_groups_stay_together(group_by, groups):
    names = [f"{folder}/frame_{number}.jpg" for folder in "abcd" for number in range(3)]
    train, val = split(dataset_of([[0]] * 12, names), [50, 50], group_by=group_by)
    position = slice(0, 1) if groups == 4 else slice(8, 9)
    assert not {image.name[position] for image in train.images} & {image.name[position] for image in val.images}
    assert len(train.images) + len(val.images) == 12


def test_images_that_the_pattern_does_not_match_are_groups_of_their_own():
    names = ["a_1.jpg", "a_2.jpg", "b.jpg", "c.jpg"]
    parts = split(dataset_of([[0]] * 4, names), [50, 50], group_by="^(.)_")
    assert sorted(len(part.images) for part in parts) == [2, 2]
    assert ["a_1.jpg", "a_2.jpg"] in [[image.name for image in part.images] for part in parts]


@pytest.mark.parametrize(
    ("shares", "group_by", "expected"),
    [
        ([100], None, "expected one for each of two or more"),
        ([1, 1, 1, 1], None, "train, val, test"),
        ([80, 0], None, "0 is not a number above 0"),
        ([80, float("nan")], None, "nan is not a number above 0"),
        ([80, 20], "folder", "10 images in 1 groups cannot be split into 2 parts"),
        ([80, 20], "(", "not a regular expression"),
        ([80, 20], "video", "matches no image, such as '0.jpg'"),
    ],
)
def test_bad_arguments(shares, group_by, expected):
    with pytest.raises(UserError, match=expected):
        split(dataset_of([[0]] * 10), shares, group_by=group_by)


def test_table():
    lines = describe_parts(split(dataset_of([[0, 0], [0, 1], [1], [0]]), [50, 50])).splitlines()
    assert lines[0].split() == ["class", "train", "images", "val", "images", "train", "objects", "val", "objects"]
    assert lines[2].split()[:3] == ["all", "2", "2"]
