"""COCO JSON files: values, structure, encodings and bytes. Accepted files must give the same data to every reader."""

import functools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import MaskRCNNMapper, fix
from d2_maskrcnn.data import check as check_dataset
from d2_maskrcnn.data.coco.checks import check_coco_json
from d2_maskrcnn.data.coco.records import load_records
from d2_maskrcnn.data.ground_truth import ground_truth_of
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.evaluation.evaluator import MaskRCNNEvaluator
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from tools.fuzz.harness import Input, expect
from tools.fuzz.values import damage, odd_value

COUNT = 220
WIDTH, HEIGHT = 64, 48
# Errors that need a decision, or that show when another one is repaired.
NOT_REPAIRED = {
    "no-images", "no-annotations", "no-categories", "image-size", "mask-outside-box", "image-unreadable",
    "image-id-repeated", "category-id-repeated",
}  # fmt: skip
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7")


def prepare(folder: Path) -> None:
    """Write the images."""
    for number in range(3):
        Image.new("RGB", (WIDTH, HEIGHT), (50 * number, 90, 20)).save(folder / f"{number}.png")


def valid_data() -> dict[str, Any]:
    """Return the content of a COCO JSON with polygons, both kinds of RLE, and a crowd."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[10:30, 20:50] = 1
    columns = [20 * HEIGHT + 10] + [20, HEIGHT - 20] * 29 + [20]
    raw = {"size": [HEIGHT, WIDTH], "counts": [*columns, HEIGHT * WIDTH - sum(columns)]}
    packed = mask_util.encode(mask)
    compressed = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}
    polygon = [[20.0, 10, 50, 10, 50, 30, 20, 30]]
    segmentations = [(polygon, 0), (raw, 0), (compressed, 0), (raw, 1), (polygon, 0)]
    annotations = [
        {
            "id": i + 1, "image_id": 1 + i // 2, "category_id": 1 + i % 2, "bbox": [20.0, 10.0, 30.0, 20.0],
            "area": 600.0, "iscrowd": crowd, "segmentation": segmentation,
        }
        for i, (segmentation, crowd) in enumerate(segmentations)
    ]  # fmt: skip
    images = [{"id": i + 1, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(3)]
    return json.loads(json.dumps({"images": images, "annotations": annotations, "categories": [
        {"id": 1, "name": "Äpfel"}, {"id": 2, "name": "b"}]}))  # fmt: skip


def make(rng: random.Random, shared: Path, folder: Path) -> Input:
    """Damage a valid file in one or two places."""
    data, labels = valid_data(), []
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2))):
        labels.append(_mutate(rng, data))
    text = json.dumps(data, ensure_ascii=False)
    kind = rng.random()
    if kind < 0.06:
        key = rng.choice(("id", "width", "bbox", "images"))
        text = text.replace(f'"{key}":', f'"{key}": 7, "{key}":', 1)
        labels.append(f"repeated key {key}")
    encoding = rng.choice(ENCODINGS) if kind > 0.9 else "utf-8"
    content = text.encode(encoding, "replace" if encoding == "cp1252" else "surrogatepass")
    if 0.06 <= kind < 0.16:
        label, content = damage(rng, content)
        labels.append(label)
    path = folder / "a.json"
    path.write_bytes(content)
    return Input(f"{encoding}: {'; '.join(labels) or 'intact'}", lambda: check(path, shared, folder))


def _mutate(rng: random.Random, data: dict[str, Any]) -> str:
    node, key, place = rng.choice(list(_places(data)))
    action = rng.random()
    if action < 0.12:
        del node[key]
        return f"removed {place}"
    if action < 0.2 and isinstance(node[key], list):
        node[key] = [v * rng.choice((1 / 64, 1e3, -1)) if isinstance(v, int | float) else v for v in node[key]]
        return f"scaled {place}"
    if action < 0.25 and isinstance(node, dict):
        node[rng.choice(("ignore", "extra"))] = odd_value(rng)
        return f"added a key beside {place}"
    if action < 0.35 and type(node[key]) is int:
        node[key] = rng.choice((float(node[key]), node[key] + 1, node[key] - 1))
    else:
        node[key] = odd_value(rng)
    return f"{place} = {node[key]!r:.60}"


def _places(node: Any, name: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield container, key and name of every value; of long lists only the first few."""
    items = node.items() if isinstance(node, dict) else enumerate(node[:8])
    for key, value in list(items):
        yield node, key, f"{name}.{key}"
        if isinstance(value, dict | list):
            yield from _places(value, f"{name}.{key}")


def check(path: Path, images: Path, folder: Path) -> None:
    """Check the file as training and evaluation do, and compare what is read with an independent reading."""
    _check_repair(path, images, folder)
    check_coco_json(path, images)
    content = path.read_bytes()
    data = json.loads(content.decode(json.detect_encoding(content)))
    records, categories = load_records(path, images)
    expect(categories == {each["id"]: each["name"] for each in data["categories"]}, "categories differ")
    sizes = {each["id"]: (each["height"], each["width"]) for each in data["images"]}
    expect(len(records) == len(sizes), f"{len(records)} records of {len(sizes)} images")
    for record in records:
        _mapper()(record)
        expected = [each for each in data["annotations"] if each["image_id"] == record["image_id"]]
        _compare(record, expected, sizes[record["image_id"]], sorted(categories))
    if data["annotations"]:
        _evaluate(path, folder, records)


def _check_repair(path: Path, images: Path, folder: Path) -> None:
    """Check that ``d2-maskrcnn check`` finds errors exactly in what training refuses, and repairs what it can."""
    try:
        report = check_dataset(path, images=images)
    except UserError:  # not COCO JSON
        return
    try:
        check_coco_json(path, images)
    except UserError:
        expect(report.has_errors, "refused, but without an error in the report")
    else:
        expect(not report.has_errors, f"accepted with errors: {report!s:.300}")
    [fixed] = fix(report, folder / "fixed")
    left = {each.kind for each in check_dataset(fixed.path).parts[0].flaws if each.severity == "error"}
    expect(left <= NOT_REPAIRED, f"{left - NOT_REPAIRED} in the repaired copy")


@functools.cache
def _mapper() -> MaskRCNNMapper:
    options = ["MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", "(30,)"]
    return MaskRCNNMapper(load_config("", options), is_train=True)


def _compare(record: dict[str, Any], expected: list[dict[str, Any]], size: tuple[int, int], order: list[int]) -> None:
    ground_truth = ground_truth_of(record)
    if ground_truth is None:
        expect(not expected, "annotations were dropped")
        return
    expect(len(ground_truth) == len(expected), f"{len(ground_truth)} of {len(expected)} annotations were read")
    for box, label, mask, crowd, given in zip(
        ground_truth.boxes, ground_truth.classes, ground_truth.masks, ground_truth.crowd, expected, strict=True
    ):
        x, y, width, height = given["bbox"]
        expect(np.allclose(box, [x, y, x + width, y + height]), f"box {box} of {given['bbox']}")
        expect(width > 0 and height > 0 and x < size[1] and y < size[0], f"impossible box {given['bbox']}")
        expect(order[label] == given["category_id"] and crowd == bool(given.get("iscrowd")), "class or crowd differs")
        expect(math.isfinite(given["area"]) and 0 <= given["area"] <= 2 * size[0] * size[1], f"area {given['area']}")
        expect(not given.get("ignore"), "ignored objects count")
        expect((mask == _decode(given["segmentation"], size)).all(), "the mask differs")


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode a segmentation without the package."""
    if isinstance(segmentation, list):
        limit = 10 * max(size)
        expect(all(math.isfinite(v) and abs(v) <= limit for part in segmentation for v in part), "impossible polygon")
        return mask_util.decode(mask_util.merge(mask_util.frPyObjects(segmentation, *size))).astype(bool)
    expect(list(segmentation["size"]) == list(size), f"RLE of size {segmentation['size']}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return mask_util.decode({"size": list(size), "counts": counts.encode()}).astype(bool)
    expect(sum(counts) == size[0] * size[1] and min(counts) >= 0, "impossible RLE")
    flat = np.repeat(np.arange(len(counts)) % 2, np.asarray(counts, dtype=np.int64))
    return flat.reshape(size, order="F").astype(bool)


def _evaluate(path: Path, folder: Path, records: list[dict[str, Any]]) -> None:
    """Evaluate detections that equal the ground truth: their AP is 100."""
    import torch

    name = f"fuzz_{path.parent.name}"
    metadata = MetadataCatalog.get(name)
    _, categories = load_records(path, None)
    metadata.set(
        json_file=str(path), thing_classes=list(categories.values()), evaluator_type="coco",
        thing_dataset_id_to_contiguous_id={number: index for index, number in enumerate(categories)},
    )  # fmt: skip
    DatasetCatalog.register(name, lambda: records)
    evaluator = MaskRCNNEvaluator(name, str(folder), ("bbox", "segm"), figures=False)
    evaluator.reset()
    single = True
    for record in records:
        ground_truth = ground_truth_of(record)
        assert ground_truth is not None
        keep = ~ground_truth.crowd
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.as_tensor(ground_truth.boxes[keep]))
        instances.pred_classes = torch.as_tensor(ground_truth.classes[keep])
        instances.scores = torch.ones(int(keep.sum()))
        instances.pred_masks = torch.as_tensor(ground_truth.masks[keep])
        single &= bool(ground_truth.masks[keep].any(axis=(1, 2)).all()) and bool(keep.any() or not len(ground_truth))
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    for task, least in (("bbox", 99.9), ("segm", 99.9 if single else 0)):
        expect(results[task]["AP"] > least, f"perfect detections have {task} AP {results[task]['AP']}")
