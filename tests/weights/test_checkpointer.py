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


class Heads(nn.Module):
    """The outputs of a Mask R-CNN that depend on the classes, and a layer that does not, under their real names."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(4, classes + 1)
        self.roi_heads.box_predictor.bbox_pred = nn.Linear(4, 4 * classes)
        self.roi_heads.mask_head = nn.Module()
        self.roi_heads.mask_head.predictor = nn.Conv2d(4, classes, 1)


class State:
    """A checkpointable that keeps a value."""

    def __init__(self, value=None):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def trained(model, **options):
    """An optimiser with momentum that has made a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return optimizer


def copy(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(state, expected):
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "output" / "run"  # made by the first save


def test_it_is_a_checkpointer_of_the_engine(folder):
    assert isinstance(MaskRCNNCheckpointer(Heads(2), str(folder)), DetectionCheckpointer)


def test_saving_and_loading_gives_everything_back(folder):
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


def test_every_checkpoint_tells_its_origin(folder):
    checkpointer = MaskRCNNCheckpointer(Heads(2), str(folder), class_names=["cat", "dog"])
    checkpointer.save("model_final", iteration=np.int64(3))
    assert read_weights(folder / "model_final.pth")["metadata"] == {
        "engine": d2_maskrcnn.engine_info().as_dict(),
        "d2_maskrcnn": d2_maskrcnn.__version__,
        "torch": str(torch.__version__),
        "thing_classes": ["cat", "dog"],
        "iteration": 3,
    }
    MaskRCNNCheckpointer(Heads(2), str(folder), engine={"name": "x"}).save("other")
    metadata = read_weights(folder / "other.pth")["metadata"]
    assert metadata["engine"] == {"name": "x"} and metadata["thing_classes"] is None and metadata["iteration"] is None


def test_no_weights_given_changes_nothing():
    model = Heads(2)
    before = copy(model)
    assert MaskRCNNCheckpointer(model).load("") == {}
    assert_equal(copy(model), before)


@pytest.mark.parametrize("options", [{"save_dir": ""}, {"save_dir": "x", "save_to_disk": False}])
def test_other_processes_do_not_write(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    MaskRCNNCheckpointer(Heads(2), **options).save("model_final")
    assert list(tmp_path.iterdir()) == []


def test_numpy_values_in_states_are_stored_plainly(folder):
    state = State({"lr": np.float64(0.1), "best": [np.int32(3)], "curve": np.arange(3.0), "flag": np.bool_(True)})
    MaskRCNNCheckpointer(Heads(2), str(folder), state=state).save("a", score=np.float32(0.5))
    loaded = read_weights(folder / "a.pth")
    value = loaded["state"]["value"]
    assert (value["lr"], value["best"], value["flag"], loaded["score"]) == (0.1, [3], True, 0.5)
    assert torch.equal(value["curve"], torch.arange(3.0, dtype=torch.float64))


def test_a_state_that_cannot_be_read_again_is_not_written(folder):
    checkpointer = MaskRCNNCheckpointer(Heads(2), str(folder), state=State(logging.getLogger()))
    with pytest.raises(TypeError, match=r"logging"):
        checkpointer.save("a")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["../a", "x/a"])
def test_names_have_no_folder(folder, name):
    with pytest.raises(ValueError, match="without a folder"):
        MaskRCNNCheckpointer(Heads(2), str(folder)).save(name)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"OUTPUT_DIR .*file/run cannot be created"):
        MaskRCNNCheckpointer(Heads(2), str(tmp_path / "file" / "run")).save("a")


def test_a_wrapped_model_is_unwrapped(folder):
    model = Heads(2)
    MaskRCNNCheckpointer(nn.DataParallel(model), str(folder)).save("a")
    assert list(read_weights(folder / "a.pth")["model"]) == list(model.state_dict())


def test_weights_only_leave_the_other_states(folder):
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
    after = copy(model)
    for name, value in source.state_dict().items():
        expected = before[name] if name.startswith("roi_heads") else value
        assert torch.equal(after[name], expected), name
    assert len(checkpointer.last_report.wrong_shape) == 6
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("cls_score.weight: (81, 4) in the file, (4, 4) in the model" in text for text in warnings)
    assert any("The file has 80 classes, the model 3 (MODEL.ROI_HEADS.NUM_CLASSES)" in text for text in warnings)


def test_the_weights_of_another_model_change_nothing(tmp_path):
    torch.save({f"blocks.{i}.weight": torch.ones(2) for i in range(20)}, tmp_path / "vit.pth")
    model = Heads(2)
    before = copy(model)
    with pytest.raises(UserError, match=r"vit\.pth holds the weights of another model"):
        MaskRCNNCheckpointer(model).load(str(tmp_path / "vit.pth"))
    assert_equal(copy(model), before)


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere/model.pkl"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(UserError, match="file not found"):
        MaskRCNNCheckpointer(Heads(2)).load(str(tmp_path / name))


def test_a_broken_cached_copy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    path = cached_path("detectron2://a/model.pkl")
    path.parent.mkdir(parents=True)
    path.write_text("<html>")
    with pytest.raises(UserError, match=r"a web page.*cached copy of detectron2://a/model\.pkl: delete it"):
        MaskRCNNCheckpointer(Heads(2)).load("detectron2://a/model.pkl")


@pytest.mark.parametrize("resume", [False, True])
def test_without_a_checkpoint_the_weights_are_loaded(folder, tmp_path, resume):
    source = Heads(2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model, state = Heads(2), State("mine")
    checkpointer = MaskRCNNCheckpointer(model, str(folder), state=state)
    assert not checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file() == ""
    assert checkpointer.resume_or_load(str(tmp_path / "weights.pth"), resume=resume) == {}
    assert_equal(copy(model), copy(source))
    assert state.value == "mine"


@pytest.fixture
def run(folder):
    """A folder with checkpoints of iterations 1, 2 and 3, whose state is their iteration."""
    for iteration in (1, 2, 3):
        checkpointer = MaskRCNNCheckpointer(Heads(2), str(folder), class_names=["a", "b"], state=State(iteration))
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return folder


def resumed(folder, model=None, **options):
    state = State()
    checkpointer = MaskRCNNCheckpointer(model or Heads(2), str(folder), state=state, **options)
    rest = checkpointer.resume_or_load("never looked at", resume=True)
    assert rest["iteration"] == state.value
    return state.value


def test_resuming_takes_the_last(run):
    assert resumed(run) == 3


def test_resuming_takes_the_one_that_is_tagged(run):
    (run / "last_checkpoint").write_text("model_0000002.pth")
    assert resumed(run) == 2


def test_not_resuming_leaves_the_run_alone(run, tmp_path):
    source, model = Heads(2), Heads(2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    MaskRCNNCheckpointer(model, str(run)).resume_or_load(str(tmp_path / "weights.pth"), resume=False)
    assert_equal(copy(model), copy(source))


@pytest.mark.parametrize("damage", ["truncate", "remove", "empty"])
def test_resuming_goes_back_to_a_whole_file(run, caplog, damage):
    last = run / "model_0000003.pth"
    if damage == "remove":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:1000] if damage == "truncate" else b"")
    with caplog.at_level(logging.WARNING, "d2_maskrcnn"):
        assert resumed(run) == 2
    assert "model_0000003.pth" in caplog.text and "Going back to an older checkpoint" in caplog.text


def test_resuming_without_a_tag_takes_the_newest(run):
    (run / "last_checkpoint").unlink()
    torch.save(Heads(2).state_dict(), run / "R-101.pth")  # newer, but no checkpoint of a training
    torch.save(Heads(2).state_dict(), run / "model_zoo.pth")
    assert MaskRCNNCheckpointer(Heads(2), str(run)).get_checkpoint_file() == str(run / "model_0000003.pth")
    assert resumed(run) == 3


def test_no_checkpoint_is_whole(run):
    for path in run.glob("*.pth"):
        path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"No checkpoint in OUTPUT_DIR .* can be read .*without --resume"):
        resumed(run)


def test_resuming_another_model_is_refused(run):
    with pytest.raises(UserError, match=r"Cannot resume from .*model_0000003\.pth.*\(0 tensors missing, 6 of another"):
        resumed(run, Heads(5))


def test_resuming_with_other_class_names_warns(run, caplog):
    resumed(run, class_names=["a", "b"])
    assert "was trained for" not in caplog.text
    resumed(run, class_names=["b", "a"])
    assert "was trained with the classes ['a', 'b'], this run has ['b', 'a']" in caplog.text


def test_resuming_a_state_that_the_file_lacks_warns(run, caplog):
    MaskRCNNCheckpointer(Heads(2), str(run), other=State()).resume_or_load("", resume=True)
    assert "does not contain the state of 'other'" in caplog.text


def test_a_state_that_does_not_fit_is_named(folder):
    model = Heads(2)
    MaskRCNNCheckpointer(model, str(folder), optimizer=trained(model)).save("model_0000001", iteration=1)
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    checkpointer = MaskRCNNCheckpointer(model, str(folder), optimizer=torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(UserError, match=r"The state of 'optimizer' in .*model_0000001\.pth does not fit this run"):
        checkpointer.resume_or_load("", resume=True)


def test_periodic_saving_removes_the_oldest(folder):
    periodic = PeriodicCheckpointer(MaskRCNNCheckpointer(Heads(2), str(folder)), period=2, max_iter=8, max_to_keep=2)
    for iteration in range(8):
        periodic.step(iteration)
    names = sorted(path.name for path in folder.glob("*.pth"))
    assert names == ["model_0000005.pth", "model_0000007.pth", "model_final.pth"]
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_what_killed_processes_left_is_removed(folder):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder.mkdir(parents=True)
    (folder / f".model_0000001.pth.{dead.pid}.tmp").write_bytes(b"x" * 1000)
    MaskRCNNCheckpointer(Heads(2), str(folder)).save("model_0000002")
    assert sorted(path.name for path in folder.iterdir()) == ["last_checkpoint", "model_0000002.pth"]


# Two processes, as on two machines: each has a folder of its own, and the first alone writes.
PROCESS = """
import sys, torch, torch.distributed as dist
import d2_maskrcnn
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from detectron2.utils import comm

rank, rendezvous, own, shared = int(sys.argv[1]), *sys.argv[2:5]
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=2)
if hasattr(comm, "create_local_process_group"):
    comm.create_local_process_group(2)
torch.manual_seed(rank)

def attempt(action):
    try:
        return action()
    except d2_maskrcnn.UserError as error:
        return str(error)

def checkpointer(folder):
    return MaskRCNNCheckpointer(torch.nn.Linear(2, 2), folder)

checkpointer(shared).save("model_0000001", iteration=1)
checkpointer(own).save("model_0000001", iteration=1)
comm.synchronize()
from_shared = checkpointer(shared)
print(rank, "shared", attempt(lambda: from_shared.resume_or_load("", resume=True)["iteration"]))
weights = comm.all_gather(from_shared.model.weight.detach().clone())
print(rank, "equal", torch.equal(weights[0], weights[1]))
print(rank, "own", attempt(lambda: checkpointer(own).resume_or_load("", resume=True)))
print(rank, "load", attempt(lambda: checkpointer(own).load(own + "/model_0000001.pth")))
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes(tmp_path, repo_dir):
    shared = tmp_path / "shared"
    command = [sys.executable, "-c", PROCESS]
    arguments = [
        [str(rank), str(tmp_path / "rendezvous"), str(tmp_path / f"own{rank}"), str(shared)] for rank in (0, 1)
    ]
    processes = [
        subprocess.Popen([*command, *each], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repo_dir)
        for each in arguments
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (tmp_path / "own0" / "model_0000001.pth").exists() and not (tmp_path / "own1").exists()
    for rank, (output, _) in enumerate(outputs):
        lines = dict(line.split(" ", 2)[1:] for line in output.splitlines() if line.startswith(f"{rank} "))
        assert lines["shared"] == "1" and lines["equal"] == "True"
        assert "Only processes [0] of 2 see a checkpoint in OUTPUT_DIR" in lines["own"]
        assert lines["load"].startswith("Process 1: Weight file ")
