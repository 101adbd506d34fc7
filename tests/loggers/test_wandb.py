"""Trainings that log to Weights & Biases offline; what they logged is read back from the run's own files."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections import defaultdict

import pytest

from d2_maskrcnn.errors import UserError

wandb = pytest.importorskip("wandb")
pytest.importorskip("wandb.proto.wandb_internal_pb2")

BLOCK = 32768  # a .wandb file is a log of LevelDB's format: blocks with records in one or several fragments
SETTINGS = ["D2_MASKRCNN.WANDB.ENABLED", True, "D2_MASKRCNN.WANDB.MODE", "offline", "D2_MASKRCNN.WANDB.NUM_IMAGES", 2]


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


def records(path):
    from wandb.proto import wandb_internal_pb2

    data, position, fragments = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        fragments += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last fragment
            record = wandb_internal_pb2.Record()
            record.ParseFromString(fragments)
            fragments = b""
            yield record


def read_runs(folder):
    """Of each process's run: id, config, steps with their values, artifacts, exit code."""
    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run = {"config": {}, "steps": [], "artifacts": [], "exit": None, "folder": path.parent}
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": record.run.run_id, "project": record.run.project, "group": record.run.run_group}
                run["tags"] = list(record.run.tags)
                run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                run["steps"].append((record.history.step.num, values))
            elif kind == "artifact":
                run["artifacts"].append(record.artifact)
            elif kind == "exit":
                run["exit"] = record.exit.exit_code
        runs.append(run)
    return runs


def finished_runs(folder):
    """The runs, once the last one's files are complete: W&B's own process writes them, and their end."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        runs = read_runs(folder)
        if runs and runs[-1]["exit"] is not None:
            break
        time.sleep(0.1)
    return runs


def check_images(steps, folders):
    """At each evaluation every image has predictions over the annotation, whose files and the image's came once.

    Returns the content of one of the files of annotated boxes.
    """
    images = defaultdict(list)  # of each image, for each evaluation: path within the record -> value
    for _, values in steps:
        found = defaultdict(dict)
        for key, value in values.items():
            if key.startswith("predictions/"):
                _, name, field = key.split("/", 2)
                found[name][field] = value
        for name, fields in found.items():
            images[name].append(fields)
    assert len(images) == 2 and len({len(evaluations) for evaluations in images.values()}) == 1
    count = len(next(iter(images.values())))
    assert count >= 2
    for evaluations in images.values():
        for field in ("path", "boxes/ground_truth/path", "masks/ground_truth/path"):
            (file,) = {fields[field] for fields in evaluations}
            assert sum((folder / file).is_file() for folder in folders) == 1
        for field in ("boxes/predictions/path", "masks/predictions/path"):
            assert all((folders[-1] / fields[field]).is_file() for fields in evaluations[-1:])
    # A killed process may leave copies that no record refers to.
    files = [file for folder in folders for file in (folder / "media" / "images" / "predictions").glob("*.png")]
    assert len(files) <= len(images) * (2 if len(folders) > 1 else 1)
    truth = next(iter(images.values()))[0]["boxes/ground_truth/path"]
    return json.loads(next(folder / truth for folder in folders if (folder / truth).is_file()).read_text())


def test_what_is_logged(trainer_of, tmp_path):
    trainer = trainer_of(
        *SETTINGS, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "D2_MASKRCNN.WANDB.TAGS", "['a','b']",
        "D2_MASKRCNN.WANDB.GROUP", "g", "D2_MASKRCNN.WANDB.PROJECT", "shapes",
        "D2_MASKRCNN.BEST_CHECKPOINT.METRIC", "validation/total_loss", "D2_MASKRCNN.BEST_CHECKPOINT.MODE", "min",
    )  # fmt: skip
    trainer.train()
    (run,) = finished_runs(tmp_path / "out")
    assert (run["project"], run["group"], run["tags"]) == ("shapes", "g", ["a", "b"])
    assert run["config"]["SOLVER"]["MAX_ITER"] == 4
    assert run["exit"] == 0
    steps = [step for step, _ in run["steps"]]
    assert steps == sorted(set(steps))

    values = {}
    for _, logged in run["steps"]:
        values |= logged
    for name in ("total_loss", "lr", "segm/AP", "segm/AP-circle", "validation/total_loss", "grad_norm"):
        assert name in values, sorted(values)
    assert values["validation/total_loss"] == pytest.approx(trainer.storage.latest()["validation/total_loss"][0])

    truth = check_images(run["steps"], [run["folder"] / "files"])
    assert truth["box_data"]
    for each in truth["box_data"]:
        assert each["box_caption"].split()[0] in ("circle", "square", "triangle", "star")
    media = run["folder"] / "files" / "media"
    table = json.loads(next(media.rglob("classes*.table.json")).read_text())
    assert table["columns"] == ["class", "bbox AP", "segm AP"]
    assert [row[0] for row in table["data"]] == ["circle", "square", "triangle", "star"]

    (model,) = [artifact for artifact in run["artifacts"] if artifact.type == "model"]
    assert "best" in model.aliases
    metric = json.loads(model.metadata)
    assert metric["metric"] == "validation/total_loss" and metric["value"] == pytest.approx(
        trainer.storage.history("validation/total_loss")._data[metric["iteration"] // 2][0]
    )


SCRIPT = """
import sys
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.engine import Trainer, run_main
def main():
    cfg = load_config(sys.argv[1], sys.argv[2:])
    register_own_data(cfg)
    cfg.freeze()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
sys.exit(run_main(main))
"""


def start(repo_dir, opts, variables=None):
    command = [sys.executable, "-c", SCRIPT, "configs/quickstart.yaml", *map(str, opts)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_dir), **(variables or {})}
    output = subprocess.DEVNULL if variables is None else subprocess.PIPE
    return subprocess.Popen(command, cwd=repo_dir, env=env, stdout=output, stderr=subprocess.STDOUT, text=True)


def wait_for(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.05)
    assert condition()


def test_kill_terminate_and_resume_is_one_run_and_no_step_twice(repo_dir, tiny_opts, tmp_path):
    out = tmp_path / "out"
    opts = [*tiny_opts, *SETTINGS, "TEST.EVAL_PERIOD", 25, "SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 17]
    opts += ["D2_MASKRCNN.LOG_PERIOD", 5]
    state = out / "wandb_run.json"

    def last_step():
        return json.loads(state.read_text())["last_step"] if state.is_file() else -1

    process = start(repo_dir, opts)
    wait_for(process, lambda: last_step() >= 29)  # past the best checkpoint's 24, which will be gone back to
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(repo_dir, opts)
    wait_for(process, lambda: last_step() >= 39)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert start(repo_dir, opts).wait(120) == 0

    runs = finished_runs(out)
    assert len(runs) == 3
    # W&B's own process may have died with the killed one before it wrote anything, the run's id included.
    assert all("id" in run for run in runs[1:]) and len({run["id"] for run in runs if "id" in run}) == 1
    assert [run["exit"] for run in runs][1:] == [130, 0]
    steps = [step for run in runs for step, _ in run["steps"]]
    assert steps == sorted(set(steps)) and steps[-1] == 59
    # Nor is one missing: what W&B's process had not yet written when it was killed is given again.
    assert {4, 9, 14, 19, 24, 29, 34, 44, 49, 54, 59} <= set(steps)
    check_images([step for run in runs for step in run["steps"]], [run["folder"] / "files" for run in runs])


def test_last_step_in_the_files_of_a_run(trainer_of, tmp_path):
    from d2_maskrcnn.loggers.wandb_files import last_written_step

    out = tmp_path / "out"
    assert last_written_step(out, "0") is None
    trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 5, "D2_MASKRCNN.LOG_PERIOD", 1).train()
    (run,) = finished_runs(out)
    assert last_written_step(out, run["id"]) == run["steps"][-1][0] == 4
    (file,) = run["folder"].glob("*.wandb")
    whole = file.read_bytes()
    found = set()
    for size in range(0, len(whole), 97):  # killed while it was writing
        file.write_bytes(whole[:size])
        found.add(last_written_step(out, run["id"]))
    assert found == {-1, 0, 1, 2, 3, 4}


def test_lost_numbers(tmp_path):
    from d2_maskrcnn.loggers.wandb_files import lost_numbers

    file = tmp_path / "metrics.json"
    assert lost_numbers(file, -1, 10) == {}
    lines = [
        '{"a": 1, "iteration": 3}',
        '{"b": 2, "iteration": 3}',
        '{"a": 9, "iteration": 2}',
        '{"a": 7, "iteration": 9}',
    ]
    file.write_text("\n".join([*lines, '{"a": 8, "iteration": 1}', "[1]", '{"torn": ']))
    assert lost_numbers(file, 1, 9) == {2: {"a": 9}, 3: {"a": 1, "b": 2}}
    assert list(lost_numbers(file, -1, 10)) == [1, 2, 3, 9]


def test_exception_ends_the_run_as_failed(trainer_of, tmp_path):
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 4)
    trainer._trainer.run_step = lambda: (_ for _ in ()).throw(UserError("broken on purpose"))
    with pytest.raises(UserError, match="broken on purpose"):
        trainer.train()
    assert finished_runs(tmp_path / "out")[0]["exit"] == 1


def test_without_wandb_training_goes_on(trainer_of, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import finds where it is not installed
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 1)
    trainer.train()
    assert trainer.iter == 1
    assert "W&B: not installed" in caplog.text and "pip install wandb" in caplog.text


def test_unreachable_server_records_offline(repo_dir, tiny_opts, tmp_path):
    opts = [*tiny_opts, *SETTINGS, "D2_MASKRCNN.WANDB.MODE", "online", "SOLVER.MAX_ITER", 1]
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}
    process = start(repo_dir, opts, nowhere)
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 0, log[-2000:]
    assert "recording offline" in log and "Traceback" not in log
    assert finished_runs(tmp_path / "out")[-1]["exit"] == 0
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_without_a_key_nobody_is_asked_for_one(repo_dir, tiny_opts, tmp_path):
    """In a terminal, where W&B would wait for an answer."""
    import pty

    opts = [*tiny_opts, *SETTINGS, "D2_MASKRCNN.WANDB.MODE", "online", "SOLVER.MAX_ITER", 1]
    command = [sys.executable, "-c", SCRIPT, "configs/quickstart.yaml", *map(str, opts)]
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_dir), **home}
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=repo_dir, env=env, stdin=theirs, stderr=theirs, stdout=output, start_new_session=True
        )
        assert process.wait(120) == 0
    os.close(theirs), os.close(ours)
    assert finished_runs(tmp_path / "out")[-1]["exit"] == 0


def test_a_full_disk_does_not_stop_the_training(trainer_of, monkeypatch, caplog):
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 2)

    def full(path, text):
        raise UserError(f"{path}: no space left")

    monkeypatch.setattr("d2_maskrcnn.loggers.wandb_session.atomic_write_text", full)
    trainer.train()
    assert trainer.iter == 2 and "training goes on without" in caplog.text


def test_watched_gradients_and_weights_are_histograms_of_their_step(trainer_of, tmp_path):
    watch = ["D2_MASKRCNN.WANDB.WATCH", "all", "D2_MASKRCNN.WANDB.WATCH_PERIOD", 2]
    trainer_of(*SETTINGS, *watch, "SOLVER.MAX_ITER", 4).train()
    (run,) = finished_runs(tmp_path / "out")
    for name in ("gradients/backbone.fpn_lateral2.weight", "parameters/backbone.fpn_lateral2.weight"):
        steps = [step for step, values in run["steps"] if f"{name}/_type" in values or name in values]
        assert steps == [1, 3]


@pytest.mark.parametrize(
    ("values", "total", "ends"),
    [([], 0, (-0.5, 0.5)), ([2.0, 2.0], 2, (1.5, 2.5)), ([0.0, 1.0, float("nan"), float("inf")], 2, (0.0, 1.0))],
)
def test_histogram(values, total, ends):
    import torch

    from d2_maskrcnn.loggers.wandb_logging import BINS, histogram

    counts, edges = histogram(torch.tensor(values))
    assert sum(counts) == total and len(counts) == BINS and len(edges) == BINS + 1
    assert (edges[0], edges[-1]) == ends


def test_more_classes_than_a_mask_has_values():
    from d2_maskrcnn.loggers.wandb_images import _mask_values

    assert _mask_values([3, 0], {0: "a", 1: "b"}) == {0: 1, 1: 2, 3: 4}
    assert _mask_values([500, 7, 500], dict.fromkeys(range(1203), "x")) == {7: 1, 500: 2}
    assert _mask_values([], {}) == {}


def test_a_failure_inside_wandb_does_not_stop_the_training(trainer_of, monkeypatch, caplog):
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 2)

    def broken(*_args, **_kwargs):
        raise AssertionError("made to fail")

    monkeypatch.setattr(wandb, "Image", broken)
    monkeypatch.setattr(wandb, "Table", broken)
    trainer.train()
    assert trainer.iter == 2
    assert "W&B: logging failed (AssertionError: made to fail): training goes on without" in caplog.text


def test_tables_of_classes(tiny_cfg):
    from d2_maskrcnn.loggers.wandb_logging import class_rows, class_tables

    both = {"bbox": {"AP": 1.0, "AP-a": 2.0}, "segm": {"AP": 3.0, "AP-a": 4.0}}
    assert class_rows([], {}) == []
    assert class_rows(["a"], both) == [["a", 1.0, 3.0]]
    assert class_rows(["a", "b"], both) == [["a", 2.0, 4.0], ["b", None, None]]
    cfg = tiny_cfg().clone()
    cfg.defrost()
    (name,) = cfg.DATASETS.TEST
    assert list(class_tables(cfg, both)) == ["classes"]
    cfg.DATASETS.TEST = (name, "other")
    assert list(class_tables(cfg, {name: both})) == [f"classes/{name}"]


@pytest.mark.parametrize(("key", "value"), [("MODE", "on"), ("LOG_MODEL", "yes"), ("WATCH", "weights")])
def test_bad_values(trainer_of, key, value):
    with pytest.raises(UserError, match=f"D2_MASKRCNN.WANDB.{key} is '{value}'; expected one of"):
        trainer_of(f"D2_MASKRCNN.WANDB.{key}", value)


def test_without_test_sets(trainer_of, tmp_path):
    none = ["DATASETS.TEST", "()", "D2_MASKRCNN.DATA.VAL_JSON", "", "D2_MASKRCNN.DATA.VAL_IMAGES", ""]
    trainer_of(*SETTINGS, *none, "SOLVER.MAX_ITER", 2).train()
    (run,) = finished_runs(tmp_path / "out")
    assert run["exit"] == 0 and any("total_loss" in values for _, values in run["steps"])


def test_disabled_writes_nothing(trainer_of, tmp_path):
    trainer_of(*SETTINGS, "D2_MASKRCNN.WANDB.MODE", "disabled", "SOLVER.MAX_ITER", 1).train()
    assert not (tmp_path / "out" / "wandb").exists()
