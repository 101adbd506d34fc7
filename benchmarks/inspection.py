"""Time, size and memory of the inspection report of one 800x1200 image, against the model's own time.

    python benchmarks/inspection.py --output benchmarks/results/inspection.md
    python benchmarks/inspection.py --input photo.jpg --also configs/quickstart.yaml output/quickstart/model_final.pth

The report is the whole program, from the start of Python to the last file, with all its parts: the image, annotated
with 30 objects, and the weights. The model's own time is that of a warm forward pass of the same weights over the same
image; the two take turns, so that other work on the machine hits both. The limit is three times the model's own time
plus 20 s. Weights are random: as they are (few detections or none), and scaled so that there are 100 detections.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from inference import CLASSES, HEIGHT, WIDTH, calibrate, draw_image
from torch import nn

import d2_maskrcnn
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.model_loading import load_model

ROOT = Path(__file__).resolve().parent.parent
OBJECTS, FACTOR, ALLOWANCE = 30, 3, 20.0


@dataclass
class Case:
    """One model; times in seconds, sizes in bytes."""

    name: str
    config: str
    weights: str
    options: list[str]
    annotations: Path | None
    model: Any = None
    forward: list[float] = field(default_factory=list)
    report: list[float] = field(default_factory=list)
    detections: int = 0
    page: int = 0
    folder: int = 0


def draw_objects(image: np.ndarray, folder: Path) -> Path:
    """Draws ellipses into an (H, W, 3) image and returns the COCO file that describes them."""
    generator = np.random.default_rng(0)
    annotations = []
    for number in range(OBJECTS):
        axes = generator.integers(8, 150, 2)
        centre = [int(generator.integers(a + 1, side - a - 1)) for a, side in zip(axes, (WIDTH, HEIGHT), strict=True)]
        outline = cv2.ellipse2Poly(centre, axes.tolist(), 0, 0, 360, 12)
        cv2.fillPoly(image, [outline], generator.integers(0, 255, 3).tolist())
        box = [*(np.subtract(centre, axes)).tolist(), *(2 * axes).tolist()]
        annotations.append(
            {
                "id": number + 1, "image_id": 1, "category_id": number % CLASSES + 1, "iscrowd": 0, "bbox": box,
                "area": float(cv2.contourArea(outline)), "segmentation": [outline.flatten().tolist()],
            }
        )  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "image.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": f"category {i + 1}"} for i in range(CLASSES)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def prepare(folder: Path, source: str, also: list[str] | None) -> list[Case]:
    """Writes image, annotation and weights into ``folder``."""
    image = draw_image().permute(1, 2, 0).numpy().copy() if not source else cv2.imread(source)
    image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    annotations = draw_objects(image, folder)
    cv2.imwrite(str(folder / "image.png"), image)
    config = str(ROOT / "configs" / "mrcnn_R101.yaml")
    cases = [
        Case("R101, random weights", config, "", [], annotations),
        Case("R101, random weights, 100 detections", config, str(folder / "scaled.pth"), [], annotations),
    ]
    torch.manual_seed(0)
    for case in cases:
        case.model = load_model(load_config(case.config, ["MODEL.WEIGHTS", ""]), "cpu", require_weights=False)[0]
    calibrate(cases[1].model, lambda: forward(cases[1].model, image))
    torch.save({"model": cases[1].model.state_dict()}, cases[1].weights)
    if also:
        options = ["INPUT.MIN_SIZE_TEST", str(HEIGHT)]
        case = Case(f"trained: {Path(also[0]).name}, not annotated", also[0], also[1], options, None)
        case.model = load_model(load_config(case.config, [*options, "MODEL.WEIGHTS", also[1]]))[0]
        cases.append(case)
    return cases


@torch.no_grad()
def forward(model: nn.Module, image: np.ndarray) -> int:
    """Detections of one forward pass over an (H, W, 3) image."""
    item = {"image": torch.as_tensor(image.transpose(2, 0, 1).copy()), "height": HEIGHT, "width": WIDTH}
    return len(model([item])[0]["instances"])


def run(case: Case, folder: Path) -> None:
    """A forward pass and a report."""
    image = cv2.imread(str(folder / "image.png"))
    start = time.perf_counter()
    case.detections = forward(case.model, image)
    case.forward.append(time.perf_counter() - start)
    output = folder / "report"
    words = ["--config-file", case.config, "--input", folder / "image.png", "--output", output]
    words += ["--annotations", case.annotations] if case.annotations else []
    words += ["--opts", *case.options, "MODEL.WEIGHTS", case.weights, "MODEL.DEVICE", "cpu"]
    command = [sys.executable, "-m", "d2_maskrcnn.inspection", *map(str, words)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    case.report.append(time.perf_counter() - start)
    case.page = (output / "report.html").stat().st_size
    case.folder = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())


def table(cases: list[Case]) -> str:
    lines = [
        "| model | detections | forward pass, s | report, s | limit, s | report / limit | report.html, MB "
        "| with JSON and PNGs, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        own, whole = statistics.median(case.forward), statistics.median(case.report)
        limit = FACTOR * own + ALLOWANCE
        lines.append(
            f"| {case.name} | {case.detections} | {own:.2f} | {whole:.1f} | {limit:.1f} | {whole / limit:.2f} "
            f"| {case.page / 1e6:.1f} | {case.folder / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", default="", help="a photograph instead of noise; it is resized")
    parser.add_argument("--also", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="also a model that was trained")
    parser.add_argument("--rounds", type=int, default=3, help="forward passes and reports of each model (default: 3)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = prepare(folder, args.input, args.also)
        for case in cases:
            forward(case.model, cv2.imread(str(folder / "image.png")))  # warm
        for _ in range(args.rounds):
            for case in cases:
                run(case, folder)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    text = (
        f"# Inspection report, one {HEIGHT}x{WIDTH} image\n\n"
        f"{'A photograph' if args.input else 'Noise'} with {OBJECTS} drawn objects, all parts, {args.rounds} rounds "
        f"taking turns, medians, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, engine: "
        f"{d2_maskrcnn.engine_info().name}, load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores; peak of "
        f"the reports {peak:.1f} GB. Limit: {FACTOR} times the forward pass plus {ALLOWANCE:.0f} s. Made by "
        f"`python benchmarks/inspection.py`.\n\n{table(cases)}\n"
    )
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
