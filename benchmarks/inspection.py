"""Measure time, size and memory of the inspection report of one 800x1200 image, against a forward pass.

    python benchmarks/inspection.py --output benchmarks/results/inspection.md
    python benchmarks/inspection.py --input photo.jpg --also configs/quickstart.yaml output/quickstart/model_final.pth

The report's time is that of the whole program, from the start of Python to the last file, with all sections: an image
with 30 annotated objects, and the weights. It alternates with a warm forward pass of the same weights over the same
image, so that other work on the machine affects both. The limit is three times the forward pass plus 20 s. Weights are
random: unscaled (few detections or none), and scaled so that there are 100 detections.
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
from models import CLASSES, HEIGHT, REPO, WIDTH, calibrate, make_image
from torch import nn

import d2_maskrcnn
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.model_loading import load_model

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
    """Draw ellipses into an (H, W, 3) image and return the COCO file that describes them."""
    generator = np.random.default_rng(0)
    annotations = []
    for number in range(OBJECTS):
        axes = generator.integers(8, 150, 2)
        center = [int(generator.integers(a + 1, side - a - 1)) for a, side in zip(axes, (WIDTH, HEIGHT), strict=True)]
        polygon = cv2.ellipse2Poly(center, axes.tolist(), 0, 0, 360, 12)
        cv2.fillPoly(image, [polygon], generator.integers(0, 255, 3).tolist())
        box = [*(np.subtract(center, axes)).tolist(), *(2 * axes).tolist()]
        annotations.append(
            {
                "id": number + 1, "image_id": 1, "category_id": number % CLASSES + 1, "iscrowd": 0, "bbox": box,
                "area": float(cv2.contourArea(polygon)), "segmentation": [polygon.flatten().tolist()],
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
    """Write image, annotations and weights into ``folder`` and load the models."""
    image = make_image().permute(1, 2, 0).numpy().copy() if not source else cv2.imread(source)
    image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    annotations = draw_objects(image, folder)
    cv2.imwrite(str(folder / "image.png"), image)
    config = str(REPO / "configs" / "mrcnn_R101.yaml")
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
        case = Case(f"trained: {Path(also[0]).name}, without annotations", also[0], also[1], options, None)
        case.model = load_model(load_config(case.config, [*options, "MODEL.WEIGHTS", also[1]]))[0]
        cases.append(case)
    return cases


@torch.no_grad()
def forward(model: nn.Module, image: np.ndarray) -> int:
    """Run one forward pass over an (H, W, 3) image and return the number of detections."""
    item = {"image": torch.as_tensor(image.transpose(2, 0, 1).copy()), "height": HEIGHT, "width": WIDTH}
    return len(model([item])[0]["instances"])


def run(case: Case, folder: Path) -> None:
    """Time a forward pass and a report."""
    image = cv2.imread(str(folder / "image.png"))
    start = time.perf_counter()
    case.detections = forward(case.model, image)
    case.forward.append(time.perf_counter() - start)
    output = folder / "report"
    args = ["--config-file", case.config, "--input", folder / "image.png", "--output", output]
    args += ["--annotations", case.annotations] if case.annotations else []
    args += ["--opts", *case.options, "MODEL.WEIGHTS", case.weights, "MODEL.DEVICE", "cpu"]
    command = [sys.executable, "-m", "d2_maskrcnn.inspection", *map(str, args)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)})
    case.report.append(time.perf_counter() - start)
    case.page = (output / "report.html").stat().st_size
    case.folder = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())


def table(cases: list[Case]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| model | detections | forward pass, s | report, s | limit, s | report / limit | report.html, MB "
        "| with JSON and PNGs, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        forward, report = statistics.median(case.forward), statistics.median(case.report)
        limit = FACTOR * forward + ALLOWANCE
        lines.append(
            f"| {case.name} | {case.detections} | {forward:.2f} | {report:.1f} | {limit:.1f} | {report / limit:.2f} "
            f"| {case.page / 1e6:.1f} | {case.folder / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", default="", help="photograph to use instead of noise; it is resized")
    parser.add_argument("--also", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="also measure a trained model")
    parser.add_argument("--rounds", type=int, default=3, help="forward passes and reports of each model (default: 3)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = prepare(folder, args.input, args.also)
        for case in cases:
            forward(case.model, cv2.imread(str(folder / "image.png")))  # warm-up
        for _ in range(args.rounds):
            for case in cases:
                run(case, folder)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    text = (
        f"# Inspection report, one {HEIGHT}x{WIDTH} image\n\n"
        f"{'A photograph' if args.input else 'Noise'} with {OBJECTS} drawn objects, all sections, medians of "
        f"{args.rounds} alternating rounds, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, engine: "
        f"{d2_maskrcnn.engine_info().name}, load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores; peak of "
        f"the reports {peak:.1f} GB. Limit: {FACTOR} times the forward pass plus {ALLOWANCE:.0f} s. Made by "
        f"`python benchmarks/inspection.py`.\n\n{table(cases)}\n"
    )
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
