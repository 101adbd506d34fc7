import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectron2.engine import launch


def test_one_process_is_this_process():
    seen = []
    launch(lambda *args: seen.append((os.getpid(), args)), num_gpus_per_machine=0, args=(1, 2))
    assert seen == [(os.getpid(), (1, 2))]


@pytest.mark.parametrize(
    ("machines", "url", "message"),
    [(1, None, "dist_url is None"), (2, None, "dist_url is None"), (2, "auto", "not on 2")],
)
def test_processes_need_a_place_to_meet(machines, url, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        launch(print, num_gpus_per_machine=2, num_machines=machines, dist_url=url)


def test_two_processes_train_one_model_and_evaluate_all_images(tmp_path, repo_dir):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "D2_MASKRCNN_ENGINE": "embedded"}
    env["PYTHONPATH"] = os.pathsep.join([str(repo_dir), env.get("PYTHONPATH", "")])
    job = Path(__file__).parent / "distributed_job.py"
    done = subprocess.run(
        [sys.executable, str(job), str(tmp_path)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"report{rank}.json").read_text()) for rank in (0, 1))
    assert [(r["rank"], r["world_size"], r["local_rank"]) for r in (first, second)] == [(0, 2, 0), (1, 2, 1)]
    assert first["wrapped"] == "DistributedDataParallel"
    assert first["weights"] == second["weights"]
    assert len(first["losses"]) == 3
    # The five images were divided among the two; AP 100 needs all of them in the one that evaluates.
    assert first["results"]["segm"]["AP-square"] == pytest.approx(100)
    assert not second["results"]
    detections = json.loads((tmp_path / "out" / "inference" / "coco_instances_results.json").read_text())
    assert sorted(d["image_id"] for d in detections) == sorted(2 * [1, 2, 3, 4, 5])
