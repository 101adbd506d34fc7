"""Evaluation by tiles: the same detections as the predictor's, with and without windows."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from d2_maskrcnn import Predictor, UserError, evaluate, example, image_files
from d2_maskrcnn.data import large_images, windowed_images
from d2_maskrcnn.data.flaws import images
from d2_maskrcnn.evaluation import prediction_images
from d2_maskrcnn.evaluation.tiled import TiledModel, without_pixels


def test_images_are_read_by_the_model(tmp_path, monkeypatch):
    predictor = Predictor(example.WEIGHTS, device="cpu", tile=100, overrides=["D2_MASKRCNN.INFERENCE.TILE", 100])
    with Image.open(example.IMAGES[0]) as image:
        pixels = np.asarray(image.convert("RGB").resize((150, 128)))
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=8, compression="deflate")
    record = {"file_name": str(path), "image_id": 3, "width": 150, "height": 128, "annotations": []}
    model = TiledModel(predictor.cfg, predictor.model)
    expected = predictor(path)
    for min_pixels in (1, 10**6):
        monkeypatch.setattr(large_images, "MIN_PIXELS", min_pixels)
        (output,) = model([without_pixels(record)])
        instances = output["instances"]
        assert len(instances) == len(expected) > 0
        np.testing.assert_allclose(instances.pred_boxes.tensor, expected.boxes, atol=0.1)
        assert len(instances.pred_masks_rle) == len(expected)
    with pytest.raises(UserError, match=r"image\.tif is 150x128, the JSON says 128x150"):
        model([{**record, "width": 128, "height": 150}])


def test_images_above_the_limit_of_whole_images(tmp_path, monkeypatch):
    for module in (image_files, images, prediction_images):
        monkeypatch.setattr(module, "MAX_PIXELS", 5000)
    monkeypatch.setattr(large_images, "MIN_PIXELS", 5000)
    monkeypatch.setattr(windowed_images, "BLOCK_PIXELS", 1024)
    with Image.open(example.IMAGES[0]) as image:
        tifffile.imwrite(tmp_path / "a.tif", np.asarray(image.resize((150, 128))), photometric="rgb", tile=(32, 32))
    names = Predictor(example.WEIGHTS, device="cpu").class_names
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 90, 90], "area": 8100}
    content = {
        "images": [{"id": 1, "file_name": "a.tif", "width": 150, "height": 128}],
        "annotations": [{**annotation, "segmentation": [[0, 0, 90, 0, 90, 90, 0, 90]]}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    data = {"TRAIN_JSON": "", "TRAIN_IMAGES": "", "VAL_JSON": tmp_path / "data.json", "VAL_IMAGES": tmp_path}
    overrides = [word for key, value in data.items() for word in (f"D2_MASKRCNN.DATA.{key}", str(value))]
    overrides += ["DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu", "D2_MASKRCNN.EVALUATION.FIGURES", False]
    tiled = ["D2_MASKRCNN.INFERENCE.TILE", 100]
    metrics = evaluate(example.WEIGHTS, output=tmp_path / "out", overrides=[*overrides, *tiled])
    assert 0 <= metrics["segm/AP"] <= 100
    with pytest.raises(UserError, match="more pixels than the limit of 0 megapixels"):
        evaluate(example.WEIGHTS, output=tmp_path / "out", overrides=overrides)
    content["images"][0]["width"] = 140
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a\.tif is 150x128, the JSON says 140x128"):
        evaluate(example.WEIGHTS, output=tmp_path / "out", overrides=[*overrides, *tiled])
