"""Train and evaluate the tiny detector in two processes on the CPU; each writes a report. Run by test_launch.py."""

import json
import sys
from pathlib import Path

import tiny
import torch

from detectron2.engine import launch
from detectron2.utils import comm


def main(folder):
    folder = Path(folder)
    dataset = tiny.make_dataset(folder / "images", "tiny_images", num_images=5)
    cfg = tiny.make_cfg(dataset, folder / "out", "SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 4)
    trainer = tiny.TinyTrainer(cfg)
    results = trainer.train()
    report = {
        "rank": comm.get_rank(),
        "world_size": comm.get_world_size(),
        "local_rank": comm.get_local_rank(),
        "wrapped": type(trainer.model).__name__,
        "weights": torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).tolist(),
        "results": results,
        "losses": [value for value, _ in trainer.storage.histories().get("loss_layer").values()]
        if comm.is_main_process()
        else None,
    }
    (folder / f"report{comm.get_rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    launch(main, num_gpus_per_machine=2, dist_url="auto", args=(sys.argv[1],))
