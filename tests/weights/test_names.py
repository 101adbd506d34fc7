import json

import numpy as np
import pytest
import torch
import torchvision

from d2_maskrcnn.weights.names import caffe2_name, convert_names, torchvision_name

PREFIX = "backbone.bottom_up."


@pytest.mark.parametrize(
    ("state", "keys"), [({}, []), ({}, ["a.b"]), ({"a.b": torch.ones(1)}, []), ({"a.b": torch.ones(1)}, ["a.b", "c"])]
)
def test_names_of_the_model_are_kept(state, keys):
    converted = convert_names(state, keys)
    assert converted.state == state and converted.convention == "detectron2"
    assert converted.prefix == "" and converted.dropped == [] and converted.note == ""


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_msra_blobs_fill_the_resnet(msra_blobs, resnet_shapes, depth):
    blobs, names = msra_blobs(depth)
    shapes = resnet_shapes(depth)
    converted = convert_names(blobs, [PREFIX + name for name in shapes])
    assert converted.convention == "caffe2" and converted.prefix == PREFIX
    assert {name: value.shape for name, value in converted.state.items()} == {PREFIX + n: s for n, s in shapes.items()}
    assert converted.dropped == ["fc1000_w", "fc1000_b"]
    for blob, name in names.items():
        assert converted.state[PREFIX + name] is blobs[blob]
        assert converted.original[PREFIX + name] == blob
    for name, value in converted.state.items():
        if name.endswith(("running_mean", "running_var")):
            assert value.dtype == np.float32 and (value == float(name.endswith("running_var"))).all()


def test_the_published_names(shared_dir):
    published = json.loads((shared_dir / "reference" / "c2_msra_names.json").read_text())
    by_rule = {blob: caffe2_name(blob) for blob in published if not blob.startswith("fc")}
    assert by_rule == {blob: name for blob, name in published.items() if not blob.startswith("fc")}
    assert len(by_rule) == 312


@pytest.mark.parametrize("blob", ["", "fc1000_w", "res6_0_branch1_w", "res2_0_branch2d_w", "conv1", "fpn_res2_2_sum_w"])
def test_other_blobs_have_no_name_in_the_resnet(blob):
    assert caffe2_name(blob) is None


def test_training_states_of_caffe2_are_dropped():
    blobs = {
        "res2_0_branch2a_w": np.ones(1),
        "res2_0_branch2a_w_momentum": np.ones(1),
        "fc1000_b_momentum": np.ones(1),
        "lr": np.ones(1),
        "model_iter": np.ones(1),
    }
    assert list(convert_names(blobs, []).state) == ["res2.0.conv1.weight"]


def test_statistics_in_a_caffe2_file_are_kept():
    blobs = {f"res2_0_branch2a_{part}": np.full(2, 3.0) for part in ("w", "bn_s", "bn_b", "bn_rm", "bn_riv")}
    state = convert_names(blobs, []).state
    assert (state["res2.0.conv1.norm.running_mean"] == 3).all() and (state["res2.0.conv1.norm.running_var"] == 3).all()


@pytest.mark.parametrize("depth", [50, 101, 152])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_torchvision_fills_the_resnet(torchvision_state, resnet_shapes, depth, wrapper):
    state = {wrapper + name: value for name, value in torchvision_state(depth).items()}
    shapes = resnet_shapes(depth)
    converted = convert_names(state, [PREFIX + name for name in shapes])
    assert converted.convention == "torchvision" and "RGB" in converted.note
    found = {name: tuple(value.shape) for name, value in converted.state.items()}
    assert found == {PREFIX + name: shape for name, shape in shapes.items()}
    assert all(name.endswith(("num_batches_tracked", "fc.weight", "fc.bias")) for name in converted.dropped)


def test_torchvision_values_go_to_the_right_layers(torchvision_state):
    state = torchvision_state(50)
    converted = convert_names(state, [PREFIX + "stem.conv1.weight"]).state
    for theirs, ours in {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer1.0.downsample.1.bias": "res2.0.shortcut.norm.bias",
        "layer4.2.conv3.weight": "res5.2.conv3.weight",
        "layer4.2.bn3.running_mean": "res5.2.conv3.norm.running_mean",
    }.items():
        assert converted[PREFIX + ours] is state[theirs]
        assert torchvision_name(theirs) == ours


def test_the_backbone_of_torchvisions_mask_rcnn_is_found():
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    names = list(model.state_dict())
    converted = convert_names({name: torch.zeros(0) for name in names}, [PREFIX + "res2.0.conv1.weight"])
    assert PREFIX + "res5.2.conv3.norm.running_var" in converted.state
    assert converted.original[PREFIX + "res2.0.conv1.weight"] == "backbone.body.layer1.0.conv1.weight"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", None), ("fc.weight", None), ("layer5.0.conv1.weight", None), ("bn1.weight", "stem.conv1.norm.weight")],
)
def test_torchvision_name(name, expected):
    assert torchvision_name(name) == expected


@pytest.mark.parametrize("wrapper", ["module.", "module.module.", "_orig_mod.", "_orig_mod.module."])
def test_a_wrapper_is_removed(wrapper):
    state = {wrapper + "a.weight": torch.ones(1), wrapper + "b.weight": torch.ones(2)}
    assert list(convert_names(state, ["a.weight", "b.weight"]).state) == ["a.weight", "b.weight"]


def test_a_prefix_of_some_tensors_is_not_a_wrapper():
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(convert_names(state, ["module.a", "b"]).state) == ["module.a", "b"]


def test_one_prefix_for_all_names(resnet_shapes):
    """``conv1.weight`` is the end of many of the model's names; the prefix that fits most names is right."""
    keys = [PREFIX + name for name in resnet_shapes(50)] + ["teacher.stem.conv1.weight", "head.res2.0.conv1.weight"]
    state = {name: torch.zeros(shape) for name, shape in resnet_shapes(50).items()}
    converted = convert_names(state, keys)
    assert converted.prefix == PREFIX
    assert set(converted.state) == {PREFIX + name for name in state}


def test_a_full_model_needs_no_prefix(resnet_shapes):
    keys = [PREFIX + name for name in resnet_shapes(50)]
    converted = convert_names({key: torch.zeros(0) for key in keys}, keys)
    assert converted.prefix == "" and list(converted.state) == keys


def test_module_versions_are_dropped():
    """BatchNorm's version number in a state dict would make Detectron2's frozen one reinterpret the variance."""
    state = torch.nn.Sequential(torch.nn.BatchNorm2d(2)).state_dict()
    assert hasattr(state, "_metadata")
    assert not hasattr(convert_names(state, list(state)).state, "_metadata")
