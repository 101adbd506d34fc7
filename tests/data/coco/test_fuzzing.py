"""Mutated COCO JSON files are accepted or refused in one line, and what is accepted can be trained on."""

import copy
import random

import pytest

from d2_maskrcnn import UserError, add_d2_maskrcnn_config
from d2_maskrcnn.data import MaskRCNNMapper, check, check_coco_json, fix
from d2_maskrcnn.data.coco.records import load_records
from detectron2.config import get_cfg

RLE = {"size": [30, 40], "counts": [63, 8] + [22, 8] * 9 + [859]}
VALUES = [
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 10**30, 10**400, 0.0, -0.5, 1.5, 1e9, -1e9, 1e308,
    float("nan"), float("inf"), "", "0", "a\0b", "\ud800", "../x", [], [[]], [None], [1, 2], [[1, 2, 3, 4, 5, 6]],
    [[1, 2] * 3], [["a"] * 6], {}, {"id": 1}, RLE, {**RLE, "counts": "xyz"}, {**RLE, "size": [30.0, 40.0]},
    {"size": [30, 40], "counts": []}, {"size": None, "counts": "0"}, {"size": [30, 40], "counts": "o" * 50},
]  # fmt: skip


def places(node, path=()):
    """Yield the path of every value in a JSON document."""
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


def mutate(data, rng):
    """Change, replace, delete or duplicate one to three values."""
    for _ in range(rng.randint(1, 3)):
        path = rng.choice([path for path in places(data) if path])
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        action, value = rng.random(), parent[path[-1]]
        if isinstance(value, float) and action < 0.7:
            parent[path[-1]] = value * rng.uniform(0.5, 1.5)
        elif action < 0.7:
            parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))
        elif action < 0.85:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(value))
    return data


@pytest.fixture(scope="module")
def mapper():
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (30,)
    return MaskRCNNMapper(cfg, is_train=True)


@pytest.mark.parametrize("seed", range(10))
def test_mutated_files(coco_folder, mapper, seed):
    rng = random.Random(seed)
    coco_folder.data["annotations"][1].update(segmentation=RLE, image_id=10)
    original, accepted = copy.deepcopy(coco_folder.data), 0
    for _ in range(50):
        coco_folder.data = mutate(copy.deepcopy(original), rng)
        coco_folder.write()
        try:
            check_coco_json(coco_folder.json_file, coco_folder.images)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        for record in load_records(coco_folder.json_file, coco_folder.images)[0]:
            mapper(record)
    assert 1 < accepted < 45


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_checked_and_repaired(coco_folder, tmp_path, seed):
    """A file is accepted for training if and only if the command finds no error, and the copy has none to repair."""
    rng = random.Random(seed)
    coco_folder.data["annotations"][1].update(segmentation=RLE, image_id=10)
    original = copy.deepcopy(coco_folder.data)
    for number in range(30):
        coco_folder.data = mutate(copy.deepcopy(original), rng)
        coco_folder.write()
        try:
            report = check(coco_folder.json_file, images=coco_folder.images)
        except UserError:  # not COCO JSON
            continue
        try:
            check_coco_json(coco_folder.json_file, coco_folder.images)
            accepted = True
        except UserError:
            accepted = False
        assert accepted != report.has_errors, str(report)
        [fixed] = fix(report, tmp_path / str(number))
        left = {each.kind for each in check(fixed.path).parts[0].flaws if each.severity == "error"}
        assert left <= {"no-images", "no-annotations", "no-categories", "image-size", "mask-outside-box"}
