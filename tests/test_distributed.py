"""The same training in one process and in two (gloo, CPU)."""

import json
import os
import subprocess
import sys

import pytest
import torch

from d2_maskrcnn.distributed import distribute, unwrap

SCRIPT = """
import json, os, sys
import torch
from pathlib import Path
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.engine import Trainer, launch, run_main
from d2_maskrcnn.evaluation.validation_loss import validation_losses
from detectron2.utils import comm

def main(out, opts):
    cfg = load_config("configs/quickstart.yaml", opts)
    register_own_data(cfg)
    cfg.freeze()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    images = []
    read = trainer.train_step.read_batch
    def record_images():
        batch = read()
        images.append([record["file_name"] for record in batch])
        return batch
    trainer.train_step.read_batch = record_images
    if "DIE" in sys.argv and comm.get_rank() == 1:
        trainer.train_step.read_batch = lambda: sys.exit(9)
    if "TERMINATE" in sys.argv and comm.get_rank() == 0:
        trainer.train_step.read_batch = lambda: (trainer.iter == 2 and os.kill(os.getppid(), 15), record_images())[1]
    trainer.train()
    every = comm.gather(images)
    if comm.is_main_process():
        names = [[n for rank in every for n in rank[i]] for i in range(len(images))]
        history = {k: [v for v, _ in h.values()] for k, h in trainer.storage.histories().items()}
        Path(out).write_text(json.dumps({"images": names, "history": history}))

if __name__ == "__main__":
    opts = [o for o in sys.argv[3:] if o not in ("DIE", "TERMINATE")]
    sys.exit(run_main(lambda: launch(main, int(sys.argv[1]), args=(sys.argv[2], opts))))
"""


@pytest.fixture
def run(repo_dir, tiny_opts, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start(processes, *opts):
        out = tmp_path / f"{processes}.json"
        env = {**os.environ, "PYTHONPATH": str(repo_dir), "OMP_NUM_THREADS": "1"}
        words = [*tiny_opts, "OUTPUT_DIR", str(tmp_path / f"out{processes}"), *map(str, opts)]
        command = [sys.executable, str(script), str(processes), str(out), *words]
        result = subprocess.run(command, cwd=repo_dir, env=env, capture_output=True, text=True, timeout=200)
        return result, out

    return start


def test_unwrap():
    model = torch.nn.Linear(1, 1)
    assert unwrap(model) is model and distribute(model) is model
    assert unwrap(torch.nn.DataParallel(model)) is model


def test_two_processes_equal_one_with_two_micro_batches(run, tmp_path):
    opts = [
        "MODEL.RESNETS.NORM", "FrozenBN", "D2_MASKRCNN.RESNETS.ZERO_INIT_RESIDUAL", False,
        "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4,
        "D2_MASKRCNN.SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.01, "SOLVER.CLIP_GRADIENTS.ENABLED", False,
        # All anchors and proposals are sampled: the processes have random generators of their own.
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100000,
    ]  # fmt: skip
    histories = []
    # The same two micro-batches; that the two processes compute activations again must not change anything either.
    for processes, accumulate, checkpointing in ((1, 2, False), (2, 1, True)):
        switches = ["D2_MASKRCNN.SOLVER.ACCUMULATE", accumulate]
        switches += ["D2_MASKRCNN.SOLVER.ACTIVATION_CHECKPOINTING", checkpointing]
        result, out = run(processes, *opts, *switches)
        assert result.returncode == 0, result.stderr[-3000:]
        histories.append(json.loads(out.read_text()))
    one, two = histories
    assert one["images"] == two["images"] and len(one["images"]) == 4
    names = [name for name in one["history"] if "loss" in name and "eta" not in name] + ["grad_norm"]
    assert len(names) == 13  # five losses and their sum, in training and in validation
    for name in names:
        assert two["history"][name] == pytest.approx(one["history"][name], rel=2e-4), name
    assert two["history"]["segm/AP"] == pytest.approx(one["history"]["segm/AP"], abs=0.05, nan_ok=True)
    first, second = (torch.load(tmp_path / f"out{n}" / "model_final.pth", weights_only=True)["model"] for n in (1, 2))
    assert all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-5) for name in first)


def test_sigterm_saves_in_all_processes_without_an_error(run):
    result, _ = run(2, "SOLVER.MAX_ITER", 400, "TERMINATE")
    assert result.returncode == 130
    assert "ended with" not in result.stderr and "Traceback" not in result.stderr
    assert "FutureWarning" not in result.stderr


def test_a_dead_rank_ends_the_others(run):
    result, _ = run(2, "SOLVER.MAX_ITER", 4, "DIE")
    assert result.returncode == 9
    assert "Process 1 of 2 ended with status 9" in result.stderr
