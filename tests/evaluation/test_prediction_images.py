import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.evaluation.prediction_images import annotated, draw_predictions
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model


@pytest.fixture
def cfg(repo_dir, tiny_opts):
    cfg = load_config(str(repo_dir / "configs" / "quickstart.yaml"), tiny_opts)
    register_own_data(cfg)
    return cfg


def test_no_annotation():
    boxes, masks, classes, scores = annotated({"height": 4, "width": 5})
    assert boxes.shape == (0, 4) and masks.shape == (0, 4, 5) and classes == scores == []


def test_annotations_of_a_record_leave_crowds_out():
    square = {"bbox": [1, 2, 3, 1], "category_id": 2, "segmentation": [[1, 2, 4, 2, 4, 3, 1, 3]], "iscrowd": 0}
    boxes, masks, classes, _ = annotated({"height": 4, "width": 5, "annotations": [square, {**square, "iscrowd": 1}]})
    assert boxes.tolist() == [[1, 2, 4, 3]] and classes == [2]
    assert masks[0].nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]


def test_images_show_the_annotation_beside_the_prediction(cfg, tmp_path):
    model = build_model(cfg).train()
    name = cfg.DATASETS.TEST[0]
    written = draw_predictions(cfg, model, name, tmp_path / "images", count=2, threshold=0.0)
    assert model.training
    assert [path.stem for path in written] == ["000001", "000002"]
    for path, record in zip(written, DatasetCatalog.get(name)[:2], strict=True):
        with Image.open(path) as file:
            shown = np.array(file)
        with Image.open(record["file_name"]) as file:
            plain = np.array(file.convert("RGB").resize((384, 384), Image.Resampling.NEAREST))
        assert shown.shape == (384, 768, 3)
        left = np.abs(shown[:, :384].astype(int) - plain).max(axis=2) > 60
        x0, y0, w, h = (int(v * 6) for v in record["annotations"][0]["bbox"])
        assert left[y0 : y0 + h, x0 : x0 + w].any()  # something is drawn where the first annotation lies
