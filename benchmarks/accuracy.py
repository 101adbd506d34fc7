"""Measure what precision, Winograd's algorithm, batches and tiles cost in AP, beside float32 one image at a time.

    python benchmarks/accuracy.py --output benchmarks/results/accuracy.md
    python benchmarks/accuracy.py --photos coco/val2017            # also on photographs

On the quick start's 100 validation images the AP is measured against the ground truth. Photographs have no ground
truth for that model's classes: there the detections of float32 whose score is at least ``SCORE`` take its place, so
that 100 means the same detections. Winograd's algorithm is used in wide layers only, which the quick start's narrow
model does not have: for the benchmark it is used in all 3x3 convolutions.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models import REPO, print_report
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import d2_maskrcnn
from d2_maskrcnn import Predictor, example
from d2_maskrcnn.modeling.precision import has_native_bfloat16
from d2_maskrcnn.ops import winograd

SCORE = 0.5  # of the detections that are the ground truth of photographs
WINOGRAD = "D2_MASKRCNN.INFERENCE.WINOGRAD"
Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """A way to predict: arguments of the predictor, and images per forward pass."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    all_winograd: bool = False


def settings(tile: int) -> list[Setting]:
    """Return the settings that this machine can run, the reference first."""
    direct = {"overrides": [WINOGRAD, "False"]}
    result = [
        Setting("float32, one by one", direct),
        Setting("batches of 8", direct, batch_size=8),
        Setting("Winograd in all 3x3 convolutions", all_winograd=True),
    ]
    if torch.cuda.is_available() or has_native_bfloat16():
        half = {"precision": "bfloat16"}
        result += [Setting("bfloat16", half), Setting("bfloat16 in batches of 8", half, batch_size=8)]
    if torch.cuda.is_available():
        result.append(Setting("float16", {"precision": "float16"}))
    return [*result, Setting(f"tiles of {tile} pixels and the whole image", {**direct, "tile": tile, "overlap": 0.3})]


def predict(weights: str, setting: Setting, images: Sequence[tuple[int, Path]]) -> Records:
    """Detect the objects of all images, as COCO's results."""
    smallest = winograd.MIN_CHANNELS, winograd.MIN_TILES
    if setting.all_winograd:
        winograd.MIN_CHANNELS = winograd.MIN_TILES = 1
    try:
        predictor = Predictor(weights, threshold=None, **setting.arguments)
        results = predictor([path for _, path in images], batch_size=setting.batch_size)
        return [record for (i, _), each in zip(images, results, strict=True) for record in each.to_coco(i)]
    finally:
        winograd.MIN_CHANNELS, winograd.MIN_TILES = smallest


def average_precisions(truth: COCO, records: Records) -> list[float]:
    """Return AP and AP50 of boxes, then of masks, in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(records)
        values = []
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(truth, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            values += [100 * float(value) for value in evaluation.stats[:2]]
    return values


def as_ground_truth(images: Sequence[tuple[int, Path]], records: Records) -> COCO:
    """Make a dataset of detections."""
    chosen = [record for record in records if record["score"] >= SCORE]
    sizes = {i: Image.open(path).size[::-1] for i, path in images}
    annotations = [
        {**record, "id": i, "iscrowd": 0, "area": float(mask_api.area(record["segmentation"]))}
        for i, record in enumerate(chosen, start=1)
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "height": size[0], "width": size[1]} for i, size in sizes.items()],
        "annotations": annotations,
        "categories": [{"id": i} for i in sorted({record["category_id"] for record in records})],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def table(
    weights: str, images: Sequence[tuple[int, Path]], make_truth: Callable[[Records], COCO], ways: Sequence[Setting]
) -> str:
    """Return the APs of all settings as a Markdown table, with the difference from the first one."""
    lines = ["| | box AP | AP50 | mask AP | AP50 | mask AP - float32's |", "|---|---|---|---|---|---|"]
    truth: COCO | None = None
    base = 0.0
    for setting in ways:
        records = predict(weights, setting, images)
        if truth is None:
            truth = make_truth(records)
            base = average_precisions(truth, records)[2]
        values = average_precisions(truth, records)
        cells = " | ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {setting.name} | {cells} | {values[2] - base:+.2f} |")
    return "\n".join(lines)


def report(args: argparse.Namespace) -> str:
    """Measure all settings on both kinds of images."""
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    sections = [
        f"# Accuracy of precisions, batches and tiles\n\nModel: {args.weights.name}, a quick start. {place}, PyTorch "
        f"{torch.__version__}, d2_maskrcnn {d2_maskrcnn.__version__}. Made by `python benchmarks/accuracy.py`."
    ]
    with tempfile.TemporaryDirectory() as name:
        script = REPO / "datasets" / "prepare_shapes.py"
        subprocess.run([sys.executable, script, "--output", name], check=True, stdout=subprocess.DEVNULL)
        with contextlib.redirect_stdout(io.StringIO()):
            shapes = COCO(os.path.join(name, "annotations", "instances_val.json"))
        images = [(each["id"], Path(name, "val", each["file_name"])) for each in shapes.dataset["images"]]
        made = table(str(args.weights), images, lambda records: shapes, settings(96))
        sections.append(f"## Quick start's validation set, {len(images)} images of 128x128\n\n{made}")
    if args.photos:
        paths = sorted(path for path in args.photos.iterdir() if path.suffix in (".jpg", ".png"))[: args.limit]
        images = list(enumerate(paths, start=1))
        ways = settings(256)[:-1]  # tiles show the same objects larger, which are other detections
        made = table(str(args.weights), images, lambda records: as_ground_truth(images, records), ways)
        sections.append(f"## {len(images)} photographs, against float32's detections of score {SCORE}\n\n{made}")
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=example.WEIGHTS, help="a checkpoint of the quick start")
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--limit", type=int, default=100, help="number of photographs (default: 100)")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    args = parser.parse_args()
    print_report(report(args), args.output)


if __name__ == "__main__":
    main()
