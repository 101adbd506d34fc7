import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import d2_maskrcnn
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights import read_weights
from d2_maskrcnn.weights.download import cached_path
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from tests.checkpoint.parts import Heads, State, assert_equal, copy, trained


def test_it_is_a_checkpointer_of_the_engine(folder):
    assert isinstance(MaskRCNNCheckpointer(Heads(2), str(folder)), DetectionCheckpointer)


def test_saving_and_loading_restores_everything(folder):
    model = Heads(2)
    optimizer = trained(model)
    other = State({"list": [1, (2.5, None)], "tensor": torch.ones(2), "text": "ü"})
    checkpointer = MaskRCNNCheckpointer(
        model, str(folder), class_names=("cat", "dog"), optimizer=optimizer, other=other
    )
    checkpointer.save("model_0000009", iteration=9, note="x")
    assert sorted(path.name for path in folder.iterdir()) == ["last_checkpoint", "model_0000009.pth"]
    assert (folder / "last_checkpoint").read_text() == "model_0000009.pth"

    second, restored = Heads(2), State()
    new_optimizer = torch.optim.SGD(second.parameters(), lr=0.5, momentum=0.9)
    loader = MaskRCNNCheckpointer(second, str(folder), optimizer=new_optimizer, other=restored)
    rest = loader.load(str(folder / "model_0000009.pth"))
    assert_equal(copy(second), copy(model))
    assert loader.last_report.is_complete
    assert str(restored.value) == str(other.value)
    assert str(new_optimizer.state_dict()) == str(optimizer.state_dict())
    assert set(rest) == {"iteration", "note", "metadata"} and rest["iteration"] == 9


def test_every_checkpoint_stores_its_origin(folder):
    checkpointer = MaskRCNNCheckpointer(
        Heads(2), str(folder), class_names=["cat", "dog"], category_ids=[3, 7], config="MODEL: {}"
    )
    checkpointer.metrics = {"segm/AP": 12.5}
    checkpointer.save("model_final", iteration=np.int64(3))
    assert read_weights(folder / "model_final.pth")["metadata"] == {
        "engine": d2_maskrcnn.engine_info().as_dict(),
        "d2_maskrcnn": d2_maskrcnn.__version__,
        "torch": str(torch.__version__),
        "thing_classes": ["cat", "dog"],
        "category_ids": [3, 7],
        "config": "MODEL: {}",
        "iteration": 3,
        "metrics": {"segm/AP": 12.5},
    }
    again = MaskRCNNCheckpointer(Heads(2), str(folder))
    again.resume_or_load("", resume=True)
    assert again.metrics == {"segm/AP": 12.5} and again.loaded_metadata["category_ids"] == [3, 7]
    MaskRCNNCheckpointer(Heads(2), str(folder), engine={"name": "x"}).save("other")
    metadata = read_weights(folder / "other.pth")["metadata"]
    assert metadata["engine"] == {"name": "x"} and metadata["thing_classes"] is None and metadata["iteration"] is None


def test_weights_alone_are_written_as_safetensors(folder):
    checkpointer = MaskRCNNCheckpointer(Heads(2), str(folder), class_names=["a", "b"], config="{}", safetensors=True)
    checkpointer.save("model_0000001", iteration=1)
    checkpointer.save("model_final", iteration=1)
    d2_maskrcnn.save_weights(str(folder / "model_0000001.pth"), folder / "copy" / "one.safetensors")
    assert [path.name for path in folder.glob("*.safetensors")] == ["model_final.safetensors"]
    for path in (folder / "model_final.safetensors", folder / "copy" / "one.safetensors"):
        model = Heads(2)
        loader = MaskRCNNCheckpointer(model)
        loader.load(str(path))
        assert_equal(copy(model), copy(checkpointer.model))
        assert loader.last_report.is_complete and loader.loaded_metadata == checkpointer.metadata(1)
    with pytest.raises(UserError, match=r"expected a file name that ends with \.safetensors"):
        d2_maskrcnn.save_weights(str(folder / "model_final.pth"), folder / "x.pth")


def test_an_empty_path_changes_nothing():
    model = Heads(2)
    before = copy(model)
    assert MaskRCNNCheckpointer(model).load("") == {}
    assert_equal(copy(model), before)


@pytest.mark.parametrize("options", [{"save_dir": ""}, {"save_dir": "x", "save_to_disk": False}])
def test_other_processes_do_not_write(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    MaskRCNNCheckpointer(Heads(2), **options).save("model_final")
    assert list(tmp_path.iterdir()) == []


def test_numpy_values_in_states_become_plain_values(folder):
    state = State({"lr": np.float64(0.1), "best": [np.int32(3)], "curve": np.arange(3.0), "flag": np.bool_(True)})
    MaskRCNNCheckpointer(Heads(2), str(folder), state=state).save("a", score=np.float32(0.5))
    loaded = read_weights(folder / "a.pth")
    value = loaded["state"]["value"]
    assert (value["lr"], value["best"], value["flag"], loaded["score"]) == (0.1, [3], True, 0.5)
    assert torch.equal(value["curve"], torch.arange(3.0, dtype=torch.float64))


def test_a_state_that_could_not_be_loaded_is_not_written(folder):
    checkpointer = MaskRCNNCheckpointer(Heads(2), str(folder), state=State(logging.getLogger()))
    with pytest.raises(TypeError, match=r"logging"):
        checkpointer.save("a")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["../a", "x/a"])
def test_a_name_with_a_folder_is_refused(folder, name):
    with pytest.raises(ValueError, match="without a folder"):
        MaskRCNNCheckpointer(Heads(2), str(folder)).save(name)


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"OUTPUT_DIR .*file/run cannot be created"):
        MaskRCNNCheckpointer(Heads(2), str(tmp_path / "file" / "run")).save("a")


def test_a_wrapped_model_is_unwrapped(folder):
    model = Heads(2)
    MaskRCNNCheckpointer(nn.DataParallel(model), str(folder)).save("a")
    assert list(read_weights(folder / "a.pth")["model"]) == list(model.state_dict())


def test_loading_weights_only_keeps_the_other_states(folder):
    state = State("of the file")
    MaskRCNNCheckpointer(Heads(2), str(folder), state=state).save("a")
    state.value = "mine"
    checkpointer = MaskRCNNCheckpointer(Heads(2), str(folder), state=state)
    assert "state" in checkpointer.load(str(folder / "a.pth"), checkpointables=[])
    assert state.value == "mine"


def test_fine_tuning_keeps_the_new_outputs(folder, caplog):
    source, model = Heads(80), Heads(3)
    MaskRCNNCheckpointer(source, str(folder)).save("coco")
    before = copy(model)
    checkpointer = MaskRCNNCheckpointer(model)
    with caplog.at_level(logging.INFO, "d2_maskrcnn"):
        checkpointer.load(str(folder / "coco.pth"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    after = copy(model)
    for name, value in source.state_dict().items():
        expected = before[name] if name.startswith("roi_heads") else value
        assert torch.equal(after[name], expected), name
    assert len(checkpointer.last_report.wrong_shape) == 6
    assert "cls_score.weight: (81, 4) in the file, (4, 4) in the model" in caplog.text
    shown = [record.getMessage() for record in caplog.records if record.name == "d2_maskrcnn.console"]
    assert shown == [
        "Fine-tuning from 80 classes to 3: 7 tensors are loaded, the 6 that depend on the number of classes start from "
        "random values."
    ]


def test_the_weights_of_another_model_change_nothing(tmp_path):
    torch.save({f"blocks.{i}.weight": torch.ones(2) for i in range(20)}, tmp_path / "vit.pth")
    model = Heads(2)
    before = copy(model)
    with pytest.raises(UserError, match=r"vit\.pth contains the weights of another model"):
        MaskRCNNCheckpointer(model).load(str(tmp_path / "vit.pth"))
    assert_equal(copy(model), before)


def test_a_damaged_cached_copy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    path = cached_path("detectron2://a/model.pkl")
    path.parent.mkdir(parents=True)
    path.write_text("<html>")
    with pytest.raises(UserError, match=r"a web page.*cached copy of detectron2://a/model\.pkl: delete it"):
        MaskRCNNCheckpointer(Heads(2)).load("detectron2://a/model.pkl")


def test_periodic_saving_removes_the_oldest(folder):
    periodic = PeriodicCheckpointer(MaskRCNNCheckpointer(Heads(2), str(folder)), period=2, max_iter=8, max_to_keep=2)
    for iteration in range(8):
        periodic.step(iteration)
    names = sorted(path.name for path in folder.glob("*.pth"))
    assert names == ["model_0000005.pth", "model_0000007.pth", "model_final.pth"]
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_temporaries_of_killed_processes_are_removed(folder):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder.mkdir(parents=True)
    (folder / f".model_0000001.pth.{dead.pid}.tmp").write_bytes(b"x" * 1000)
    MaskRCNNCheckpointer(Heads(2), str(folder)).save("model_0000002")
    assert sorted(path.name for path in folder.iterdir()) == ["last_checkpoint", "model_0000002.pth"]
