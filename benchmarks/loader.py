"""Measure how many images per second the training loader delivers, beside what a training iteration takes.

    python benchmarks/loader.py --json instances_train2017.json --images train2017 --step 2    # about two minutes

Without ``--json`` it uses drawn images of 640x640 pixels. The first table has the images per second by the number of
worker processes; with ``--step``, also those of iterations of ``configs/mrcnn_R101.yaml`` on two 800x800 images
(``train.py``, setup plain). The second table has the processor time per image of the mapper's parts, in one process.
"""

import argparse
import itertools
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import REPO
from train import make_images, time_alternating

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import build_resumable_train_loader, register_own_data
from d2_maskrcnn.data.loader import ResumableTrainLoader
from d2_maskrcnn.data.raw_images import ImageInput
from detectron2.config import CfgNode

IMAGES_PER_BATCH = 2


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="COCO annotations of the images")
    parser.add_argument("--images", type=Path, help="folder of the images")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--step", type=int, default=0, help="timed iterations of a training; 0 for none")
    parser.add_argument("--threads", type=int, default=2, help="of the training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        if args.json is None:
            draw_dataset(Path(name) / "data")
            args.json = Path(name) / "data" / "annotations" / "instances_train.json"
            args.images = Path(name) / "data" / "train"
        configs = {kind: make_config(args.json, args.images, kind) for kind in ("polygon", "bitmask")}
        print("| masks | workers | images/s |\n|---|---|---|")
        for (kind, cfg), workers in itertools.product(configs.items(), args.workers):
            print(f"| {kind} | {workers} | {images_per_second(cfg, workers, args.batches):.1f} |", flush=True)
        if args.step:
            make_images(Path(name))
            seconds = statistics.median(time_alternating(["plain"], Path(name), args.step)["plain"])
            print(f"| a training iteration | | {IMAGES_PER_BATCH / seconds:.2f} |")
    print("\n| ms of processor time per image | polygon | bitmask |\n|---|---|---|")
    parts = {kind: time_parts(build_loader(cfg), args.batches * IMAGES_PER_BATCH) for kind, cfg in configs.items()}
    for part in parts["polygon"]:
        print(f"| {part} | {parts['polygon'][part]:.1f} | {parts['bitmask'][part]:.1f} |")


def draw_dataset(folder: Path) -> None:
    """Write a dataset of images with geometric shapes."""
    script = [sys.executable, str(REPO / "datasets" / "prepare_shapes.py"), "--output", str(folder)]
    subprocess.run([*script, "--train", "60", "--val", "1", "--size", "640"], check=True, stdout=subprocess.DEVNULL)


def make_config(json: Path, images: Path, mask_format: str) -> CfgNode:
    """Return the config of ``mrcnn_R101.yaml`` for a dataset, which is registered."""
    opts = ["D2_MASKRCNN.DATA.TRAIN_JSON", str(json), "D2_MASKRCNN.DATA.TRAIN_IMAGES", str(images)]
    opts += ["INPUT.MASK_FORMAT", mask_format, "SOLVER.IMS_PER_BATCH", str(IMAGES_PER_BATCH), "MODEL.DEVICE", "cpu"]
    cfg = load_config(str(REPO / "configs" / "mrcnn_R101.yaml"), opts)
    register_own_data(cfg)
    return cfg


def build_loader(cfg: CfgNode, workers: int = 0) -> ResumableTrainLoader:
    """Build the training loader with a number of worker processes."""
    cfg = cfg.clone()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", workers])
    return build_resumable_train_loader(cfg, seed=1)


def images_per_second(cfg: CfgNode, workers: int, batches: int) -> float:
    """Return the images per second that the loader delivers to a process that does nothing with them."""
    batches_of_loader = iter(build_loader(cfg, workers))
    for _ in range(1 + 2 * workers):  # the start of the workers, and what they read ahead
        next(batches_of_loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(batches_of_loader)
    return batches * IMAGES_PER_BATCH / (time.perf_counter() - start)


def time_parts(loader: ResumableTrainLoader, images: int) -> dict[str, float]:
    """Return the milliseconds of processor time per image of each part of the mapper, in this process."""
    mapper: Any = loader.mapper
    seconds: dict[str, float] = {}

    def timed(part: str, function: Callable[..., Any], *args: Any) -> Any:
        start = time.process_time()
        result = function(*args)
        seconds[part] = seconds.get(part, 0.0) + time.process_time() - start
        return result

    torch.set_num_threads(1)
    records: Any = itertools.islice(itertools.cycle(loader.records), images)
    for record in records:
        sample = {key: value for key, value in record.items() if key != "annotations"}
        image = ImageInput(timed("decode", mapper._read, sample))
        transforms = timed("resize and flip", mapper.augmentations, image)
        sample["image"] = torch.from_numpy(
            timed("order channels", np.ascontiguousarray, image.image.transpose(2, 0, 1))
        )
        used = [mapper._used(each, record) for each in record["annotations"] if not each.get("iscrowd", 0)]
        size = image.image.shape[:2]
        sample["instances"] = timed("boxes and masks", mapper._to_instances, used, transforms, size)
        timed("send to another process", lambda sent: ForkingPickler.loads(ForkingPickler.dumps(sent)), sample)
    return {part: 1e3 * total / images for part, total in seconds.items()}


if __name__ == "__main__":
    main()
