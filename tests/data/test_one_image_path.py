"""The same detections from Predictor, command, evaluator and DefaultPredictor, whatever an image's format."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn import Predictor
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.cli import predict
from d2_maskrcnn.cli.main import build_parser
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import build_checked_test_loader
from d2_maskrcnn.data.image_reading import image_size, read_image
from d2_maskrcnn.evaluation.evaluator import build_evaluator
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from tools.fuzz.tiny import NARROW_MODEL

NAMES = ["circle", "square", "triangle", "star"]
OPTIONS = {**NARROW_MODEL, "MODEL.DEVICE": "cpu", "INPUT.MIN_SIZE_TEST": 64, "TEST.DETECTIONS_PER_IMAGE": 5}
THRESHOLD = 0.1
DATASET = "one_image_path"


def write_images(folder: Path) -> list[str]:
    """Write one image in many formats."""
    rgb = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    gray, image = rgb[:, :, 0], Image.fromarray(rgb)
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.fromarray(gray))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "rgb.png")
    transparent.save(folder / "rgba.png")
    transparent.convert("LA").save(folder / "gray_alpha.png")
    image.quantize(16).save(folder / "palette.png", transparency=3)
    image.save(folder / "rotated.jpg", exif=exif)
    image.save(folder / "rotated.tif", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("CMYK").save(folder / "cmyk.tif")
    image.convert("L").save(folder / "gray.png")
    image.convert("1").save(folder / "bilevel.tif")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "gray16.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "gray16.tif", exif=exif)
    Image.fromarray(gray.astype(np.float32) / 255).save(folder / "float.tif")
    cv2.imwrite(str(folder / "rgb16.png"), rgb.astype(np.uint16) * 257)
    return sorted(path.name for path in folder.iterdir())


KINDS = [
    "bilevel.tif", "cmyk.jpg", "cmyk.tif", "float.tif", "gray.png", "gray16.png", "gray16.tif", "gray_alpha.png",
    "palette.png", "rgb.png", "rgb16.png", "rgba.png", "rotated.jpg", "rotated.tif",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    assert write_images(folder) == KINDS
    return folder


@pytest.fixture(scope="module")
def cfg(tmp_path_factory, repo_dir):
    """The config of a tiny model with random weights, saved in ``MODEL.WEIGHTS``."""
    out = tmp_path_factory.mktemp("model")
    cfg = load_config(str(repo_dir / "configs" / "quickstart.yaml"), [str(x) for kv in OPTIONS.items() for x in kv])
    torch.manual_seed(0)
    MaskRCNNCheckpointer(build_model(cfg), str(out), class_names=NAMES).save("tiny")
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(out / "tiny.pth"), str(out)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = THRESHOLD
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.D2_MASKRCNN.EVALUATION.FIGURES = False
    cfg.DATASETS.TEST = ()
    return cfg


@pytest.fixture(scope="module")
def by_predictor(cfg, folder) -> dict:
    return {Path(each.path).name: each for each in Predictor(cfg, threshold=THRESHOLD)(folder)}


@pytest.fixture(scope="module")
def by_command(cfg, folder, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("command")
    (out / "config.yaml").write_text(cfg.dump())
    flags = ["--confidence-threshold", str(THRESHOLD), "--save-json", str(out / "r.json")]
    arguments = [str(folder), "--config-file", str(out / "config.yaml"), *flags]
    predict.run(build_parser(predict, "predict").parse_args(arguments))
    return grouped(json.loads((out / "r.json").read_text()), lambda record: Path(record["file_name"]).name)


@pytest.fixture(scope="module")
def by_evaluator(cfg, folder, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("evaluation")
    sizes = [image_size(folder / name) for name in KINDS]
    images = [
        {"id": i, "file_name": name, "width": w, "height": h}
        for i, (name, (w, h)) in enumerate(zip(KINDS, sizes, strict=True))
    ]
    box = {"bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]]}
    content = {
        "images": images,
        "annotations": [{"id": i + 1, "image_id": i, "category_id": 1, **box} for i in range(len(KINDS))],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
    }
    (out / "val.json").write_text(json.dumps(content))
    register_coco_instances(DATASET, {}, str(out / "val.json"), str(folder))
    try:
        model = Predictor(cfg, threshold=THRESHOLD).model
        inference_on_dataset(model, build_checked_test_loader(cfg, DATASET), build_evaluator(cfg, DATASET, str(out)))
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
    return grouped(json.loads((out / "coco_instances_results.json").read_text()), lambda r: KINDS[r["image_id"]])


@pytest.fixture(scope="module")
def default_predictor(cfg):
    return DefaultPredictor(cfg)


def grouped(records: list[dict], key) -> dict:
    groups: dict[str, list[dict]] = {name: [] for name in KINDS}
    for record in records:
        groups[key(record)].append(record)
    return {name: sorted(group, key=lambda r: -r["score"]) for name, group in groups.items()}


@pytest.mark.parametrize("name", KINDS)
def test_same_detections(name, folder, by_predictor, by_command, by_evaluator, default_predictor):
    results = by_predictor[name]
    records = results.to_coco(0)
    assert records
    for others in (by_command[name], by_evaluator[name]):
        assert [r["category_id"] for r in others] == [r["category_id"] for r in records]
        np.testing.assert_allclose([r["score"] for r in others], results.scores, atol=1e-5)
        np.testing.assert_allclose([r["bbox"] for r in others], [r["bbox"] for r in records], atol=0.02)
        assert [r["segmentation"] for r in others] == [r["segmentation"] for r in records]
    instances = default_predictor(read_image(folder / name, "BGR"))["instances"]
    np.testing.assert_allclose(instances.scores, results.scores, atol=1e-5)
    np.testing.assert_allclose(instances.pred_boxes.tensor, results.boxes, atol=0.02)
    assert (instances.pred_masks.numpy() != results.masks).mean() < 1e-3
