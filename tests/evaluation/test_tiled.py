"""Evaluation by tiles: the same detections as the predictor's, with and without windows."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from d2_maskrcnn import Predictor, UserError, example
from d2_maskrcnn.data import large_images
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
