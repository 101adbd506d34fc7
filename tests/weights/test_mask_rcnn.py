"""The weights of Detectron2's model zoo, of MSRA and of torchvision fill this project's model."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch

from d2_maskrcnn import add_d2_maskrcnn_config
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

WIDTH = 8
PREFIX = "backbone.bottom_up."


@pytest.fixture(scope="module")
def config(repo_dir):
    """``config(depth, **options)``: a narrow Mask R-CNN on the CPU."""

    def config(depth=50, norm="FrozenBN", classes=4):
        cfg = get_cfg()
        add_d2_maskrcnn_config(cfg)
        cfg.merge_from_file(str(repo_dir / "configs" / "mrcnn_R101.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM = depth, norm
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = WIDTH
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4 * WIDTH
        cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
        return cfg

    return config


def bottom_up(model):
    return {name: value for name, value in model.state_dict().items() if name.startswith(PREFIX)}


def write_zoo_file(path, shapes):
    """Write a pickle in the zoo's format; tensor number i is filled with i."""
    state = {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items())}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, 2))
    return path


def assert_filled(model, shapes):
    state = model.state_dict()
    for i, name in enumerate(shapes):
        assert (state[name] == i).all(), name


@pytest.mark.parametrize("depth", [50, 101])
def test_a_zoo_file_fills_the_model(tmp_path, config, depth, caplog):
    model = build_model(config(depth))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # Older zoo files also have the constants that are computed today.
    old = {**shapes, "pixel_mean": (3, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": (3, 4)}
    checkpointer = MaskRCNNCheckpointer(model)
    with caplog.at_level(logging.WARNING, "d2_maskrcnn"):
        rest = checkpointer.load(str(write_zoo_file(tmp_path / "model_final.pkl", old)))
    assert rest == {"__author__": "Detectron2 Model Zoo"}
    assert checkpointer.last_report.is_complete and not checkpointer.last_report.unexpected
    assert caplog.text == ""
    assert_filled(model, shapes)


def test_the_full_size_model_has_the_names_of_the_zoo(tmp_path, repo_dir, shared_dir):
    shapes = json.loads((shared_dir / "reference" / "state_dict_R101_FPN.json").read_text())
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    cfg.merge_from_file(str(repo_dir / "configs" / "mrcnn_R101.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    checkpointer = MaskRCNNCheckpointer(model)
    checkpointer.load(str(write_zoo_file(tmp_path / "model_final.pkl", shapes)))
    report = checkpointer.last_report
    assert (report.missing, report.unexpected, report.wrong_shape) == ([], [], [])
    assert len(report.loaded) == len(shapes)
    assert_filled(model, shapes)


@pytest.mark.parametrize(("depth", "norm"), [(50, "BN"), (101, "FrozenBN"), (152, "BN")])
def test_an_msra_file_fills_the_resnet(config, msra_file, msra_blobs, depth, norm):
    model = build_model(config(depth, norm))
    checkpointer = MaskRCNNCheckpointer(model)
    checkpointer.load(str(msra_file(depth, WIDTH)))
    report = checkpointer.last_report
    assert report.is_backbone_only and not report.unexpected and not report.wrong_shape
    blobs, names = msra_blobs(depth, WIDTH)
    state = bottom_up(model)
    for blob, name in names.items():
        np.testing.assert_array_equal(state.pop(PREFIX + name).numpy(), blobs[blob])
    for name, value in state.items():  # what is left are the statistics of the frozen affine
        assert name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert (value == float(name.endswith("running_var"))).all()


@pytest.mark.parametrize(("depth", "norm"), [(50, "BN"), (101, "FrozenBN"), (152, "BN")])
def test_a_torchvision_file_fills_the_resnet(tmp_path, config, torchvision_state, depth, norm, caplog):
    theirs = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in torchvision_state(depth, WIDTH).items()
    }
    torch.save(theirs, tmp_path / "resnet.pth")
    model = build_model(config(depth, norm))
    checkpointer = MaskRCNNCheckpointer(model)
    with caplog.at_level(logging.INFO, "d2_maskrcnn"):
        checkpointer.load(str(tmp_path / "resnet.pth"))
    report = checkpointer.last_report
    assert report.is_backbone_only and not report.unexpected and not report.wrong_shape
    assert "INPUT.FORMAT RGB" in caplog.text
    state = bottom_up(model)
    assert set(report.loaded) == {name for name in state if not name.endswith("num_batches_tracked")}
    for ours, source in {
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res5.2.conv3.norm.bias": "layer4.2.bn3.bias",
    }.items():
        assert torch.equal(state[PREFIX + ours], theirs[source])


def test_a_trained_batch_norm_can_be_frozen(tmp_path, config):
    """The version number that torch stores for BatchNorm must not change the variance of the frozen layer."""
    trained = build_model(config(50, "BN"))
    for buffer in trained.buffers():
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.uniform_(0.5, 2.0)
    MaskRCNNCheckpointer(trained, str(tmp_path)).save("model_final")
    frozen = build_model(config(50, "FrozenBN"))
    checkpointer = MaskRCNNCheckpointer(frozen)
    checkpointer.load(str(tmp_path / "model_final.pth"))
    assert checkpointer.last_report.is_complete and not checkpointer.last_report.unexpected
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
