"""A small model with seeded weights, exported once per format, and the comparison of detections."""

import cv2
import numpy as np
import pytest
import torch

from d2_maskrcnn import Predictor
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.exporters import export
from d2_maskrcnn.exporters.openvino_format import convert_onnx
from detectron2.modeling import build_model
from tests.modeling.conftest import fill_weights, narrow, narrow_cfg  # noqa: F401

NAMES = ["circle", "square", "triangle", "star"]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
STAGES = ("res2", "res3", "res4", "res5")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint that stores its config and class names."""
    folder = tmp_path_factory.mktemp("model")
    proposals = {"MODEL__RPN__PRE_NMS_TOPK_TEST": 1000, "MODEL__RPN__POST_NMS_TOPK_TEST": 1000}
    sizes = {"INPUT__MIN_SIZE_TEST": 64, "INPUT__MAX_SIZE_TEST": 160}
    cfg = narrow_cfg("plain", MODEL__ROI_HEADS__NUM_CLASSES=4, **proposals, **sizes)
    model = fill_weights(build_model(cfg))
    MaskRCNNCheckpointer(model, str(folder), class_names=NAMES, config=cfg.dump()).save("model")
    return folder / "model.pth"


@pytest.fixture(scope="session")
def eager(checkpoint):
    """The model in PyTorch, with one block per stage, so that it is exported faster."""
    predictor = Predictor(checkpoint, device="cpu", threshold=None)
    bottom_up = predictor.model.backbone.bottom_up
    for name in STAGES:
        bottom_up.add_module(name, bottom_up.get_submodule(name)[:1])
    return predictor


@pytest.fixture(scope="session")
def exported(eager, tmp_path_factory):
    """``exported(format)``: the file of this format."""
    folder, files = tmp_path_factory.mktemp("exported"), {}

    def get(format):
        if format not in files:
            files[format] = folder / f"model{SUFFIXES[format]}"
            if format == "openvino":  # what export() does, without tracing the model again
                convert_onnx(get("onnx"), files[format])
            else:
                export(eager, format, files[format])
        return files[format]

    return get


@pytest.fixture(scope="session")
def predictor(exported):
    """``predictor(format)``: a predictor of the file of this format, which keeps the file's score threshold."""
    predictors = {}

    def get(format):
        if format not in predictors:
            predictors[format] = Predictor(exported(format), threshold=None)
        return predictors[format]

    return get


@pytest.fixture
def make_images():
    """``make_images((H, W), ...)``: smooth noise, (H, W, 3) uint8 each, the same in every call."""

    def make(*sizes):
        generator = np.random.RandomState(0)
        small = [generator.randint(0, 256, (h // 6 + 2, w // 6 + 2, 3)).astype(np.uint8) for h, w in sizes]
        return [cv2.resize(each, (w, h)) for each, (h, w) in zip(small, sizes, strict=True)]

    return make


@pytest.fixture
def assert_same():
    """``assert_same(actual, expected)``: the same detections up to the order, of ``Results`` of one image."""

    def check(actual, expected, scores=1e-4, boxes=0.05, masks=0.005):
        assert len(actual) == len(expected)
        if len(expected) == 0:
            return
        distance = np.abs(actual.boxes[None] - expected.boxes[:, None]).max(-1)  # (expected, actual)
        distance[actual.class_ids[None] != expected.class_ids[:, None]] = np.inf
        match = distance.argmin(1)
        assert len(set(match)) == len(match)
        assert distance.min(1).max() < boxes
        assert np.abs(actual.scores[match] - expected.scores).max() < scores
        assert (actual.masks[match] != expected.masks).mean((1, 2)).max() <= masks

    return check


@pytest.fixture(scope="session")
def narrow_batch():
    """Images (3, 3, 96, 130) uint8 and their sizes (3, 2)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 96, 130), generator=generator).to(torch.uint8)
    return images, torch.tensor([[96, 130], [50, 130], [96, 33]])
