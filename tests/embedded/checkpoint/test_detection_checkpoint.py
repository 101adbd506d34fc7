import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer


class Unit(nn.Module):
    """Named like one unit of a ResNet bottleneck."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 1, bias=False)
        self.conv1.norm = nn.BatchNorm2d(2)


class Detector(nn.Module):
    """Names like those of a detector: a bottom-up backbone, pixel statistics and anchors."""

    def __init__(self):
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(3))
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Module()
        self.backbone.bottom_up.res2 = nn.ModuleList([Unit()])
        self.head = nn.Linear(2, 1)


PREFIX = "backbone.bottom_up.res2.0.conv1"


def make(folder="", model=None, **checkpointables):
    return DetectionCheckpointer(model or Detector(), str(folder), **checkpointables)


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_round_trip_with_states_and_further_data(tmp_path):
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    model.head(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    make(tmp_path, model, optimizer=optimizer).save("model_0000004", iteration=4, note="text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000004.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"

    other = Detector()
    fresh = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    rest = make(tmp_path, other, optimizer=fresh).load(str(tmp_path / "model_0000004.pth"))
    assert rest == {"iteration": 4, "note": "text"}
    assert fresh.param_groups[0]["lr"] == 0.5
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_no_path_loads_nothing():
    assert make().load("") == {}


def test_resume_wins_over_weights_and_only_weights_load_otherwise(tmp_path):
    class State:
        value = 0

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    saved = State()
    saved.value = 7
    make(tmp_path, state=saved).save("model_0000001", iteration=1)
    path = str(tmp_path / "model_0000001.pth")

    state = State()
    assert make(tmp_path, state=state).resume_or_load("", resume=True) == {"iteration": 1}
    assert state.value == 7
    state = State()
    assert make(tmp_path / "empty", state=state).resume_or_load(path, resume=True)["iteration"] == 1
    assert state.value == 0
    assert make(tmp_path, state=state).resume_or_load("", resume=False) == {}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        make().load(str(tmp_path / "nowhere.pth"))


def test_saving_can_be_switched_off(tmp_path):
    DetectionCheckpointer(Detector(), str(tmp_path), save_to_disk=False).save("model")
    DetectionCheckpointer(Detector(), "").save("model")
    assert not list(tmp_path.iterdir())


def test_the_name_has_no_folder(tmp_path):
    with pytest.raises(ValueError, match="a/b"):
        make(tmp_path).save("a/b")


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path):
    checkpointer = make(tmp_path)
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        checkpointer.save("model", bad=lambda: None)
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_old_checkpoints_can_be_removed(tmp_path):
    periodic = PeriodicCheckpointer(make(tmp_path), period=1, max_iter=4, max_to_keep=2)
    for iteration in range(4):
        periodic.step(iteration)
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "model_0000002.pth",
        "model_0000003.pth",
        "model_final.pth",
    }


def test_the_prefix_of_a_wrapped_model_is_removed(tmp_path):
    model = Detector()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "wrapped.pth")
    other = Detector()
    make(model=other).load(str(tmp_path / "wrapped.pth"))
    assert torch.equal(other.head.weight, model.head.weight)


def test_shapes_that_differ_are_reported_and_skipped(tmp_path, caplog):
    state = Detector().state_dict()
    state["head.weight"] = torch.zeros(5, 2)
    torch.save({"model": state}, tmp_path / "other.pth")
    model = Detector()
    before = model.head.weight.clone()
    make(model=model).load(str(tmp_path / "other.pth"))
    assert torch.equal(model.head.weight, before)
    assert any("head.weight" in message and "(5, 2)" in message for message in messages(caplog))


def test_constants_are_neither_missing_nor_unexpected(tmp_path, caplog):
    state = Detector().state_dict()
    del state["pixel_mean"]
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    torch.save({"model": state}, tmp_path / "model.pth")
    with caplog.at_level("WARNING"):
        make().load(str(tmp_path / "model.pth"))
    assert not messages(caplog)
    del state["head.bias"]
    state["new.weight"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "model.pth")
    make().load(str(tmp_path / "model.pth"))
    assert "head.bias" in caplog.text
    assert "new.weight" in caplog.text


def write_pickle(path, content):
    Path(path).write_bytes(pickle.dumps(content))
    return str(path)


def test_imagenet_weights_of_caffe2_land_in_the_backbone(tmp_path):
    blobs = {
        "res2_0_branch2a_w": np.full((2, 1, 1, 1), 3.0, np.float32),
        "res2_0_branch2a_bn_s": np.full(2, 4.0, np.float32),
        "res2_0_branch2a_bn_b": np.full(2, 5.0, np.float32),
        "fc1000_w": np.zeros((1000, 2), np.float32),
    }
    model = Detector()
    make(model=model).load(write_pickle(tmp_path / "R-101.pkl", blobs))
    state = model.state_dict()
    assert state[f"{PREFIX}.weight"].flatten().tolist() == [3.0, 3.0]
    assert state[f"{PREFIX}.norm.weight"].tolist() == [4.0, 4.0]
    assert state[f"{PREFIX}.norm.bias"].tolist() == [5.0, 5.0]
    assert state[f"{PREFIX}.norm.running_mean"].tolist() == [0.0, 0.0]
    assert state[f"{PREFIX}.norm.running_var"].tolist() == [1.0, 1.0]


def test_weights_of_torchvision_land_in_the_backbone(tmp_path):
    state = {
        "conv1.weight": torch.zeros(64, 3, 7, 7),
        "layer1.0.conv1.weight": torch.full((2, 1, 1, 1), 3.0),
        "layer1.0.bn1.running_var": torch.full((2,), 6.0),
        "fc.weight": torch.zeros(1000, 2),
    }
    torch.save(state, tmp_path / "resnet.pth")
    model = Detector()
    make(model=model).load(str(tmp_path / "resnet.pth"))
    assert model.state_dict()[f"{PREFIX}.weight"].flatten().tolist() == [3.0, 3.0]
    assert model.state_dict()[f"{PREFIX}.norm.running_var"].tolist() == [6.0, 6.0]


def test_zoo_files_with_numpy_arrays(tmp_path):
    saved = Detector()
    state = {name: value.numpy() for name, value in saved.state_dict().items()}
    model = Detector()
    path = write_pickle(tmp_path / "model_final.pkl", {"model": state, "__author__": "someone"})
    rest = make(model=model).load(path)
    assert torch.equal(model.head.weight, saved.head.weight)
    assert rest == {"__author__": "someone"}


@pytest.mark.parametrize("how", ["query", "flag"])
def test_endings_are_matched_when_asked_for(tmp_path, how):
    content = {"model": {"conv1.weight": torch.full((2, 1, 1, 1), 9.0)}}
    if how == "flag":
        content["matching_heuristics"] = True
    torch.save(content, tmp_path / "part.pth")
    model = Detector()
    make(model=model).load(f"{tmp_path / 'part.pth'}" + ("?matching_heuristics=True" if how == "query" else ""))
    assert model.state_dict()[f"{PREFIX}.weight"].flatten().tolist() == [9.0, 9.0]


def test_endings_are_not_matched_unasked(tmp_path):
    torch.save({"model": {"conv1.weight": torch.full((2, 1, 1, 1), 9.0)}}, tmp_path / "part.pth")
    model = Detector()
    before = model.state_dict()[f"{PREFIX}.weight"].clone()
    make(model=model).load(str(tmp_path / "part.pth"))
    assert torch.equal(model.state_dict()[f"{PREFIX}.weight"], before)


class Harmful:
    """Would make a folder when it is unpickled by ordinary means."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("extension", ["pkl", "pth"])
def test_nothing_in_a_file_is_run(tmp_path, extension):
    content = {"model": {"head.weight": Harmful(str(tmp_path / "made"))}}
    path = tmp_path / f"weights.{extension}"
    if extension == "pkl":
        write_pickle(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="mkdir"):
        make().load(str(path))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("tag", ["../outside.pth", "/etc/passwd", "sub/model.pth"])
def test_the_last_checkpoint_is_in_the_folder(tmp_path, tag):
    folder = tmp_path / "run"
    make(folder).save("model_0000001")
    torch.save(Detector().state_dict(), tmp_path / "outside.pth")
    (folder / "last_checkpoint").write_text(tag)
    with pytest.raises(ValueError, match="outside that folder"):
        make(folder).resume_or_load("", resume=True)


@pytest.mark.parametrize("address", ["detectron2://../../x.pkl", "https://host/../../x.pth"])
def test_no_address_leaves_the_cache(address):
    with pytest.raises(ValueError, match="plain address"):
        make().load(address)
