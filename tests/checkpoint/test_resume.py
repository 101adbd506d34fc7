import logging
import os
import subprocess
import sys

import pytest
import torch

from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.checkpoint_files import check_optimizer, stored_class_names
from tests.checkpoint.parts import Heads, State, assert_equal, copy, trained


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


def test_links_are_followed_and_replaced(run, tmp_path):
    """A checkpoint on another disk is read; saving replaces the link and keeps the file. Broken links are ignored."""
    outside = tmp_path / "model_final.pth"
    (run / "model_0000003.pth").rename(outside)
    (run / "model_0000003.pth").symlink_to(outside)
    (run / "model_final.pth").symlink_to(tmp_path / "nowhere.pth")
    before = outside.read_bytes()
    assert resumed(run) == 3
    (run / "last_checkpoint").unlink()
    assert resumed(run) == 3
    MaskRCNNCheckpointer(Heads(2), str(run), state=State(4)).save("model_0000003", iteration=4)
    assert not (run / "model_0000003.pth").is_symlink() and outside.read_bytes() == before


def test_resuming_uses_the_tagged_checkpoint(run):
    (run / "last_checkpoint").write_text("model_0000002.pth")
    assert resumed(run) == 2


def test_without_resume_the_weights_are_loaded(run, tmp_path):
    source, model = Heads(2), Heads(2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    MaskRCNNCheckpointer(model, str(run)).resume_or_load(str(tmp_path / "weights.pth"), resume=False)
    assert_equal(copy(model), copy(source))


@pytest.mark.parametrize("damage", ["truncate", "remove", "empty"])
def test_resuming_goes_back_to_a_complete_file(run, caplog, damage):
    last = run / "model_0000003.pth"
    if damage == "remove":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:1000] if damage == "truncate" else b"")
    with caplog.at_level(logging.WARNING, "d2_maskrcnn"):
        assert resumed(run) == 2
    assert "model_0000003.pth" in caplog.text and "Going back to an older checkpoint" in caplog.text


def test_resuming_without_a_tag_uses_the_newest(run):
    (run / "last_checkpoint").unlink()
    torch.save(Heads(2).state_dict(), run / "R-101.pth")  # newer, but no checkpoint of a training
    torch.save(Heads(2).state_dict(), run / "model_zoo.pth")
    assert MaskRCNNCheckpointer(Heads(2), str(run)).get_checkpoint_file() == str(run / "model_0000003.pth")
    assert resumed(run) == 3


@pytest.mark.parametrize(
    "tag", ["../../outside.pth", "/etc/passwd", "..", "sub/model_0000001.pth", "a" * 300, "a\x00b", "x\\y", "a\nb"]
)
def test_the_tag_stays_in_the_folder(run, tag, caplog):
    torch.save(Heads(2).state_dict(), run.parent.parent / "outside.pth")
    (run / "last_checkpoint").write_text(tag)
    assert resumed(run) == 3
    assert "expected the name of a checkpoint in the same folder" in caplog.text


def test_a_tag_that_is_a_pipe(run):
    (run / "last_checkpoint").unlink()
    os.mkfifo(run / "last_checkpoint")
    assert resumed(run) == 3


def set_at(data, key, value):
    *path, last = key.split(".")
    for part in path:
        data = data[part]
    if value is None:
        del data[last]
    else:
        data[last] = value


@pytest.fixture
def training_state():
    """The content of a checkpoint as the trainer writes it, after five iterations."""
    model = Heads(2)
    return {
        "model": model.state_dict(),
        "iteration": 5,
        "trainer": {
            "iteration": 5,
            "seed": 7,
            "initial_seed": None,
            "_trainer": {"iteration": 5, "optimizer": trained(model).state_dict()},
        },
        "ema": {"values": model.state_dict(), "updates": 5},
        "metadata": {"thing_classes": ["a", "b"]},
    }


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("iteration", -1, "its iteration is -1, expected an integer from 0"),
        ("iteration", 5.0, "its iteration is 5.0"),
        ("iteration", True, "its iteration is True"),
        ("iteration", "5", "its iteration is '5'"),
        ("trainer", [1], "'trainer' is a list"),
        ("trainer.seed", float("nan"), "trainer.seed is nan"),
        ("trainer.seed", 2**70, "trainer.seed is 1180591620717411303424"),
        ("trainer.initial_seed", "x", "trainer.initial_seed is 'x'"),
        ("trainer._trainer", 3, "'trainer._trainer' is a int"),
        ("trainer._trainer.optimizer", {}, "is not the state of an optimizer"),
        ("trainer._trainer.optimizer.state", {}, "has no state, although it has momentum"),
        ("trainer._trainer.optimizer.state", {0: {"momentum_buffer": torch.tensor([float("nan")])}}, "not finite"),
        ("trainer._trainer.optimizer.param_groups", "x", "is not the state of an optimizer"),
        ("ema", 3, "are not a state dict"),
        ("ema.values", {"backbone.0.weight": torch.ones(1)}, "backbone.0.weight is not a tensor of the model's shape"),
        ("ema.values", {"backbone.0.bias": torch.full((4,), float("inf"))}, "backbone.0.bias is not finite"),
    ],
)
def test_training_states_are_checked_before_they_are_used(folder, training_state, key, value, reason):
    set_at(training_state, key, value)
    folder.mkdir(parents=True)
    torch.save(training_state, folder / "model_0000005.pth")
    state = State("mine")
    with pytest.raises(UserError, match=f"Cannot resume from .*model_0000005.pth: .*{reason}") as info:
        MaskRCNNCheckpointer(Heads(2), str(folder), trainer=state).resume_or_load("", resume=True)
    assert "\n" not in str(info.value) and state.value == "mine"


@pytest.mark.parametrize("key", ["lr", "momentum", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "0.1", True])
def test_the_numbers_of_an_optimizer(folder, training_state, key, value):
    training_state["trainer"]["_trainer"]["optimizer"]["param_groups"][0][key] = value
    folder.mkdir(parents=True)
    torch.save(training_state, folder / "model_0000005.pth")
    with pytest.raises(UserError, match=f"optimizer has {key} .*, expected a number from 0"):
        MaskRCNNCheckpointer(Heads(2), str(folder)).resume_or_load("", resume=True)


def test_a_valid_training_state_is_accepted(folder, training_state):
    folder.mkdir(parents=True)
    torch.save(training_state, folder / "model_0000005.pth")
    assert MaskRCNNCheckpointer(Heads(2), str(folder)).resume_or_load("", resume=True)["iteration"] == 5


@pytest.mark.parametrize("metadata", [3, "text", [], {"thing_classes": 7}, {"thing_classes": [1, 2]}])
def test_metadata_of_another_form_is_ignored(folder, training_state, metadata):
    training_state["metadata"] = metadata
    folder.mkdir(parents=True)
    torch.save(training_state, folder / "model_0000005.pth")
    checkpoint = MaskRCNNCheckpointer(Heads(2), str(folder)).resume_or_load("", resume=True)
    assert stored_class_names(checkpoint) == []


def test_momentum_of_another_shape():
    model = Heads(2)
    optimizer = trained(model)
    check_optimizer(optimizer)
    state = optimizer.state_dict()
    for wrong in (torch.zeros(3), torch.zeros(1), torch.tensor(0.0)):
        state["state"][0]["momentum_buffer"] = wrong
        optimizer.load_state_dict(state)
        with pytest.raises(ValueError, match="momentum_buffer has shape"):
            check_optimizer(optimizer)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_adamw_without_one_of_its_moments(key):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    check_optimizer(optimizer)
    optimizer.state[weight][key] = None
    with pytest.raises(ValueError, match=f"a parameter has no {key}$"):
        check_optimizer(optimizer)


def test_all_checkpoints_are_damaged(run):
    for path in run.glob("*.pth"):
        path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"No checkpoint in OUTPUT_DIR .* can be read .*in another OUTPUT_DIR"):
        resumed(run)


def test_resuming_another_model_is_refused(run):
    with pytest.raises(UserError, match=r"Cannot resume from .*model_0000003\.pth.*\(0 tensors missing, 6 of another"):
        resumed(run, Heads(5))


def test_resuming_with_other_class_names_warns(run, caplog):
    resumed(run, class_names=["a", "b"])
    assert "was trained for" not in caplog.text
    resumed(run, class_names=["b", "a"])
    assert "was trained with the classes ['a', 'b'], this run has ['b', 'a']" in caplog.text


def test_resuming_without_one_of_the_states_warns(run, caplog):
    MaskRCNNCheckpointer(Heads(2), str(run), other=State()).resume_or_load("", resume=True)
    assert "does not contain the state of 'other'" in caplog.text


def test_a_state_that_does_not_fit_is_named(folder):
    model = Heads(2)
    MaskRCNNCheckpointer(model, str(folder), optimizer=trained(model)).save("model_0000001", iteration=1)
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    checkpointer = MaskRCNNCheckpointer(model, str(folder), optimizer=torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(UserError, match=r"The state of 'optimizer' in .*model_0000001\.pth does not fit this run"):
        checkpointer.resume_or_load("", resume=True)


# Two processes, as on two machines: each has its own folder, and only the first one writes.
PROCESS = """
import sys, torch, torch.distributed as dist
import d2_maskrcnn
from d2_maskrcnn import compat
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
compat.destroy_process_groups()
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
