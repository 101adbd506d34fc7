"""Trainings of seconds that log to offline runs of Weights & Biases; what they log is recorded on its way to W&B."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.loggers.wandb_media import class_tables, histograms, mask_values
from detectron2.data import DatasetCatalog

wandb = pytest.importorskip("wandb")

OURS = "D2_MASKRCNN.WANDB."
SETTINGS = [OURS + "ENABLED", True, OURS + "MODE", "offline", OURS + "NUM_IMAGES", 2]
CLASSES = ["circle", "square", "triangle", "star"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f"wandb-{name.lower()}"))


@pytest.fixture
def runs(monkeypatch):
    """The runs that are started, each with its arguments, logged dicts, artifacts and exit code."""
    started = []
    init = wandb.init

    def record(**arguments):
        run = init(**arguments)
        entry = SimpleNamespace(run=run, arguments=arguments, logged=[], artifacts=[], exit_code=None)
        log, log_artifact, finish = run.log, run.log_artifact, run.finish
        monkeypatch.setattr(run, "log", lambda values: (entry.logged.append(values), log(values)))

        def record_artifact(artifact, *arguments, **options):
            entry.artifacts.append((artifact, options))
            return log_artifact(artifact, *arguments, **options)

        def end(exit_code):
            entry.exit_code = exit_code
            finish(exit_code=exit_code)

        monkeypatch.setattr(run, "log_artifact", record_artifact)
        monkeypatch.setattr(run, "finish", end)
        started.append(entry)
        return run

    monkeypatch.setattr(wandb, "init", record)
    return started


def iterations_of(entry, name):
    return [values["iteration"] for values in entry.logged if name in values]


def test_training_is_logged_by_iteration(trainer_of, runs, tmp_path):
    trainer = trainer_of(
        *SETTINGS, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, OURS + "TAGS", "['a','b']", OURS + "GROUP", "g",
        OURS + "PROJECT", "shapes", "D2_MASKRCNN.LOG_PERIOD", 1, "D2_MASKRCNN.EVALUATION.FIGURES", True,
        "D2_MASKRCNN.BEST_CHECKPOINT.METRIC", "validation/total_loss", "D2_MASKRCNN.BEST_CHECKPOINT.MODE", "min",
    )  # fmt: skip
    trainer.train()
    (entry,) = runs
    assert [entry.arguments[key] for key in ("project", "group", "tags")] == ["shapes", "g", ["a", "b"]]
    assert entry.arguments["config"]["SOLVER"]["MAX_ITER"] == 4 and entry.exit_code == 0
    assert iterations_of(entry, "total_loss") == iterations_of(entry, "lr") == [0, 1, 2, 3]
    for name in ("segm/AP", "segm/AP-circle", "validation/total_loss", "inference/confusion_matrix", "classes"):
        assert iterations_of(entry, name) == [1, 3], name
    (table,) = [values["classes"] for values in entry.logged[-3:] if "classes" in values]
    assert table.columns == ["class", "bbox AP", "segm AP"] and [row[0] for row in table.data] == CLASSES

    ((artifact, options),) = [logged for logged in entry.artifacts if logged[0].type == "model"]
    assert options == {"aliases": ["best"]}
    assert artifact.metadata["metric"] == "validation/total_loss" and artifact.metadata["iteration"] in (1, 3)
    assert "model_best.pth" in artifact.manifest.entries
    assert list((tmp_path / "out").glob(f"wandb/offline-run-*-{entry.run.id}/*.wandb"))


def read_overlay(entry, image, kind, group):
    return Path(entry.run.dir) / image.to_json(entry.run)[kind][group]["path"]


def test_images_show_predictions_over_the_ground_truth(trainer_of, runs):
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 1, OURS + "SCORE_THRESHOLD", 0.0)
    trainer.train()
    (entry,) = runs
    (values,) = [values for values in entry.logged if "predictions/000001.png" in values]
    image = values["predictions/000001.png"]
    assert "predictions/000002.png" in values and "predictions/000003.png" not in values
    record = DatasetCatalog.get(trainer.cfg.DATASETS.TEST[0])[0]
    objects = [each for each in record["annotations"] if not each["iscrowd"]]
    boxes = json.loads(read_overlay(entry, image, "boxes", "ground_truth").read_text())["box_data"]
    assert [each["class_id"] for each in boxes] == [each["category_id"] for each in objects]
    captions = [each["box_caption"].removeprefix("FN ") for each in boxes]  # false negatives say so
    assert captions == [CLASSES[each["category_id"]] for each in objects]
    x, y, width, height = objects[0]["bbox"]
    assert list(boxes[0]["position"].values()) == pytest.approx([x, y, x + width, y + height])
    with Image.open(read_overlay(entry, image, "masks", "ground_truth")) as file:
        assert {*np.unique(np.asarray(file))} == {0, *(each["category_id"] + 1 for each in objects)}
    assert all("score" in each["scores"] for each in json.loads(
        read_overlay(entry, image, "boxes", "predictions").read_text()
    )["box_data"])  # fmt: skip
    assert read_overlay(entry, image, "masks", "predictions").is_file()


def test_resumed_training_continues_its_run(trainer_of, runs, tmp_path):
    opts = [*SETTINGS, OURS + "NUM_IMAGES", 0, "D2_MASKRCNN.LOG_PERIOD", 1]
    trainer_of(*opts, "SOLVER.MAX_ITER", 2).train()
    trainer_of(*opts, "SOLVER.MAX_ITER", 4, resume=True).train()
    first, second = runs
    assert first.run.id == second.run.id == json.loads((tmp_path / "out" / "wandb_run.json").read_text())["id"]
    assert second.arguments["resume"] == "allow"
    assert iterations_of(first, "total_loss") + iterations_of(second, "total_loss") == [0, 1, 2, 3]
    (tmp_path / "out" / "wandb_run.json").write_text("{")
    trainer_of(*opts, "SOLVER.MAX_ITER", 5, resume=True).train()
    assert runs[2].run.id != first.run.id


def test_exception_ends_the_run_as_failed(trainer_of, runs):
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 4)
    trainer.train_step.run_step = lambda: (_ for _ in ()).throw(UserError("broken on purpose"))
    with pytest.raises(UserError, match="broken on purpose"):
        trainer.train()
    assert runs[0].exit_code == 1


def test_interrupted_training_ends_the_run_with_130(trainer_of, runs):
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 4)
    trainer.stop_requested = True
    with pytest.raises(SystemExit):
        trainer.train()
    assert runs[0].exit_code == 130


def test_training_without_wandb_installed(trainer_of, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 1)
    trainer.train()
    assert trainer.iter == 1
    assert "W&B is not installed" in caplog.text and "pip install wandb" in caplog.text


@pytest.mark.parametrize("broken", ["Image", "Table", "init"])
def test_failure_inside_wandb_is_one_warning(trainer_of, monkeypatch, caplog, broken):
    def fail(*_args, **_kwargs):
        raise AssertionError("made to\nfail")

    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 2)
    monkeypatch.setattr(wandb, broken, fail)
    trainer.train()
    assert trainer.iter == 2
    assert caplog.text.count("failed (AssertionError: made to fail): training continues without it") == 1


def test_full_disk_does_not_stop_the_training(trainer_of, monkeypatch, caplog):
    def full(path, _text):
        raise UserError(f"{path}: no space left")

    trainer = trainer_of(*SETTINGS, "SOLVER.MAX_ITER", 2)
    monkeypatch.setattr("d2_maskrcnn.loggers.wandb.atomic_write_text", full)
    trainer.train()
    assert trainer.iter == 2 and "no space left): training continues without it" in caplog.text


SCRIPT = """
import sys
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.loggers.wandb import WandbRun
run = WandbRun(load_config("configs/quickstart.yaml", sys.argv[1:]))
run.start(resume=False)
run.log(0, {"loss": 1.0})
run.finish()
"""


@pytest.mark.parametrize("key", ["", "0" * 40])
def test_unreachable_server_records_offline(repo_dir, tmp_path, key):
    """On a terminal, where W&B would prompt for a missing API key and wait."""
    import pty

    opts = [*SETTINGS, OURS + "MODE", "online", "OUTPUT_DIR", tmp_path / "out"]
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), **({"WANDB_API_KEY": key} if key else {})}
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_dir), **home, **server}
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    with log.open("w") as output:
        command = [sys.executable, "-c", SCRIPT, *map(str, opts)]
        process = subprocess.Popen(
            command, cwd=repo_dir, env=env, stdin=theirs, stdout=output, stderr=output, start_new_session=True
        )
        assert process.wait(120) == 0, log.read_text()[-2000:]
    os.close(theirs), os.close(ours)
    assert "recording offline" in log.read_text()
    assert list((tmp_path / "out").glob("wandb/offline-run-*/*.wandb"))


def test_histograms_of_watched_tensors(trainer_of, runs):
    watch = [OURS + "WATCH", "all", OURS + "WATCH_PERIOD", 2, OURS + "NUM_IMAGES", 0]
    trainer_of(*SETTINGS, *watch, "SOLVER.MAX_ITER", 4).train()
    for name in ("gradients/backbone.fpn_lateral2.weight", "parameters/backbone.fpn_lateral2.weight"):
        assert iterations_of(runs[0], name) == [1, 3]


@pytest.mark.parametrize(
    ("values", "total", "ends"),
    [([], 0, (0.0, 1.0)), ([2.0, 2.0], 2, (1.5, 2.5)), ([0.0, 1.0, float("nan"), float("inf")], 2, (0.0, 1.0))],
)
def test_histogram_counts_finite_values(values, total, ends):
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(values))])
    (histogram,) = histograms(wandb, model, "all").values()
    assert sum(histogram.histogram) == total
    assert (histogram.bins[0], histogram.bins[-1]) == ends


def test_label_map_values_with_many_classes():
    assert mask_values([3, 0], {0: "a", 1: "b"}) == {0: 1, 1: 2, 3: 4}
    assert mask_values([500, 7, 500], dict.fromkeys(range(1203), "x")) == {7: 1, 500: 2}
    assert mask_values([], {}) == {}


def test_class_tables(tiny_cfg):
    cfg = tiny_cfg().clone()
    cfg.defrost()
    (name,) = cfg.DATASETS.TEST
    metrics = {"bbox": {"AP": 1.0, "AP-circle": 2.0}, "segm": {"AP": 3.0, "AP-circle": 4.0}}
    DatasetCatalog.get(name)  # sets the names of the classes
    expected = [["circle", 2.0, 4.0], *([label, None, None] for label in CLASSES[1:])]
    assert class_tables(cfg, metrics) == {"classes": expected}
    assert class_tables(cfg, {}) == {}
    cfg.DATASETS.TEST = (name, "other")
    assert class_tables(cfg, {name: metrics}) == {f"classes/{name}": expected}


@pytest.mark.parametrize(("key", "value"), [("MODE", "on"), ("LOG_MODEL", "yes"), ("WATCH", "weights")])
def test_bad_values(trainer_of, key, value):
    with pytest.raises(UserError, match=f"D2_MASKRCNN.WANDB.{key} is '{value}'; expected one of"):
        trainer_of(OURS + key, value)


def test_without_test_sets(trainer_of, runs):
    none = ["DATASETS.TEST", "()", "D2_MASKRCNN.DATA.VAL_JSON", "", "D2_MASKRCNN.DATA.VAL_IMAGES", ""]
    trainer_of(*SETTINGS, *none, "SOLVER.MAX_ITER", 2).train()
    assert runs[0].exit_code == 0 and iterations_of(runs[0], "total_loss") == [1]


def test_disabled_writes_nothing(trainer_of, tmp_path):
    trainer_of(*SETTINGS, OURS + "MODE", "disabled", "SOLVER.MAX_ITER", 1).train()
    assert not (tmp_path / "out" / "wandb").exists()
