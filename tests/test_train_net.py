"""``train_net.py`` as a person runs it: a process with arguments, files on a disk, signals."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

CONFIG = "configs/quickstart.yaml"


def command(*args):
    return [sys.executable, "train_net.py", "--config-file", CONFIG, *map(str, args)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(repo_dir, *args, expect=0, prefix=()):
    full = [*prefix, *command(*args)[len(prefix) and 1 :]]
    result = subprocess.run(full, cwd=repo_dir, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == expect, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def weights(path):
    return torch.load(path, weights_only=True, map_location="cpu")["model"]


def scalars(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_train_then_evaluate(repo_dir, tiny_opts, tmp_path):
    out = tmp_path / "out"
    reports = ["D2_MASKRCNN.EVALUATION.FIGURES", True, "D2_MASKRCNN.INSPECT.ENABLED", True]
    result = run(repo_dir, *tiny_opts, *reports)
    lines = result.stdout.splitlines()
    assert re.search(r"epoch 1\.0/1\.0  iteration 6/6  eta: .*total_loss: .*lr: ", result.stdout), lines
    assert lines[0].startswith("d2_maskrcnn ") and " engine " in lines[0]
    assert any(line.split()[:2] == ["masks", str(round(scalars(out)[-1]["segm/AP"], 1))] for line in lines), lines
    assert len(lines) < 30, lines
    log = (out / "log.txt").read_text()
    assert "Environment:" in log and "copypaste" in log
    advice = lines.index("Next:")  # printed after the log is closed
    assert all(line in log for line in lines[:advice])
    commands = [f"  d2-maskrcnn {name} {out / 'model_best.pth'} IMAGE" for name in ("predict", "inspect")]
    assert lines[advice + 1 :] == commands
    assert sorted(p.name for p in out.glob("model_*.pth"))[-1] == "model_final.pth"
    assert (out / "last_checkpoint").read_text().strip() == "model_final.pth"
    assert (out / "config.yaml").is_file() and list(out.glob("events.out.tfevents.*"))
    assert len(list((out / "predictions").glob("*.jpg"))) == 6
    assert any("total_loss" in line for line in scalars(out))

    # The checkpoint says where it comes from and what its classes are called.
    metadata = torch.load(out / "model_final.pth", weights_only=True, map_location="cpu")["metadata"]
    assert metadata["engine"]["name"] in ("installed", "embedded")
    assert metadata["thing_classes"] == ["circle", "square", "triangle", "star"]

    # Measured again from the file, the model scores the same.
    trained = scalars(out)[-1]
    assert "segm/AP" in trained
    run(repo_dir, "--eval-only", *tiny_opts, "OUTPUT_DIR", tmp_path / "eval", "MODEL.WEIGHTS", out / "model_final.pth")
    found = json.loads((tmp_path / "eval" / "inference" / "coco_instances_results.json").read_text())
    assert found == json.loads((out / "inference" / "coco_instances_results.json").read_text())

    # A second training would overwrite the first.
    result = run(repo_dir, *tiny_opts, expect=2)
    assert "already contains a training" in result.stderr and "--resume" in result.stderr


def test_killed_and_resumed_equals_uninterrupted(repo_dir, tiny_opts, tmp_path):
    opts = [*tiny_opts, "DATASETS.TEST", "()", "D2_MASKRCNN.DATA.VAL_JSON", "", "D2_MASKRCNN.DATA.VAL_IMAGES", ""]
    opts += ["SOLVER.MAX_ITER", "12"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run(repo_dir, *opts, "OUTPUT_DIR", straight)

    seconds = random.Random(0)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(
            command("--resume", *opts, "OUTPUT_DIR", killed),
            cwd=repo_dir,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = set(killed.glob("model_*.pth"))
        while process.poll() is None and set(killed.glob("model_*.pth")) == before:
            time.sleep(0.02)
        time.sleep(seconds.uniform(0.0, 0.5))  # in the middle of an iteration or of the next save
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    run(repo_dir, "--resume", *opts, "OUTPUT_DIR", killed)

    first, second = weights(straight / "model_final.pth"), weights(killed / "model_final.pth")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_ctrl_c_saves_and_says_how_to_go_on(repo_dir, tiny_opts, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(*tiny_opts, "SOLVER.MAX_ITER", "100000"),
        cwd=repo_dir,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not list(out.glob("model_*.pth")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 130, log[-2000:]
    iteration, name = re.search(r"Stopped after iteration (\d+); saved as (\S+\.pth)", log).groups()
    assert "--resume" in log and "Traceback" not in log
    assert (out / "last_checkpoint").read_text().strip() == name == f"model_{int(iteration) - 1:07d}.pth"


@pytest.mark.parametrize("how", ["--num-gpus", "torchrun"])
def test_two_processes(repo_dir, tiny_opts, tmp_path, how):
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "2"]
    if how == "torchrun":
        prefix = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        run(repo_dir, *opts, prefix=prefix)
    else:
        run(repo_dir, "--num-gpus", "2", *opts)
    out = tmp_path / "out"
    assert "segm/AP" in scalars(out)[-1]
    assert (out / "model_final.pth").is_file()


def test_help(repo_dir):
    result = subprocess.run([sys.executable, "train_net.py", "--help"], cwd=repo_dir, capture_output=True, text=True)
    assert result.returncode == 0
    for option in ["--config-file", "--eval-only", "--resume", "--num-gpus", "--num-machines", "--machine-rank"]:
        assert option in result.stdout


def test_a_closed_stdout_stops_quietly(repo_dir, tiny_opts, tmp_path):
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "100000", "D2_MASKRCNN.LOG_PERIOD", "1", "DATASETS.TEST", "()"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*opts), cwd=repo_dir, env=environment(), text=True, **pipes) as process:
        while "iteration 3/" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 130 and "Error" not in errors and "Traceback" not in errors
    assert list((tmp_path / "out").glob("model_*.pth"))


def test_evaluation_results_are_written_and_the_config_kept(repo_dir, tiny_opts, tmp_path):
    out = tmp_path / "out"
    run(repo_dir, *tiny_opts, "SOLVER.MAX_ITER", "2")
    config = (out / "config.yaml").read_text()
    run(repo_dir, "--eval-only", "--resume", *tiny_opts, "INPUT.MIN_SIZE_TEST", "32", "TEST.AUG.ENABLED", "True",
        "TEST.AUG.MIN_SIZES", "(64,)")  # fmt: skip
    results = json.loads((out / "inference" / "results.json").read_text())
    assert {"bbox", "segm", "tta"} <= results.keys() and "AP50" in results["segm"]
    assert (out / "config.yaml").read_text() == config
