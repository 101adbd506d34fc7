"""Measure the time of a ResNet101-FPN Mask R-CNN on one image: PyTorch, onnxruntime and OpenVINO, float32 to int8.

    python benchmarks/export.py --output benchmarks/results/export.md

One image of 800 x 1200 pixels, batch 1, on the CPU, 80 classes, 1,000 proposals and 100 detections with 28x28 masks.
The models share one process and its threads and alternate, one image each, so that other programs affect all of them
equally; the table has medians. The weights are random, and int8 ranges are measured on the same image. torchvision's
model also pastes its masks.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import HEIGHT, WIDTH, build_detectron2, build_torchvision, calibrate, make_image, make_run, print_report
from torch import nn

from d2_maskrcnn.exporters.onnx_format import write_onnx
from d2_maskrcnn.exporters.openvino_format import convert_onnx
from d2_maskrcnn.exporters.quantization import quantize_onnx, quantize_openvino
from d2_maskrcnn.modeling.precision import set_precision
from d2_maskrcnn.runtimes import FileInfo
from d2_maskrcnn.runtimes.sessions import open_session

CPU = torch.device("cpu")


def describe() -> FileInfo:
    """Return metadata of the files, which nothing but their readers need."""
    outputs = ["boxes", "scores", "classes", "image_indices", "masks"]
    return FileInfo("", [], "BGR", HEIGHT, WIDTH, 0.05, 0.5, 100, outputs)


def write_files(model: nn.Module, image: torch.Tensor, folder: Path) -> dict[str, tuple[Path, str]]:
    """Export the model; return the file and the precision of each variant."""
    source, info = folder / "float32.onnx", describe()
    write_onnx(model, source, info)
    inputs = [sample(image)]
    quantize_onnx(source, folder / "int8.onnx", inputs, replace(info, precision="int8"))
    convert_onnx(source, folder / "float32.xml")
    quantize_openvino(source, folder / "int8.xml", inputs, replace(info, precision="int8"))
    return {
        "onnxruntime, float32": (source, "float32"),
        "onnxruntime, int8": (folder / "int8.onnx", "float32"),
        "OpenVINO, float32": (folder / "float32.xml", "float32"),
        "OpenVINO, bfloat16": (folder / "float32.xml", "bfloat16"),
        "OpenVINO, int8": (folder / "int8.xml", "float32"),
        "OpenVINO, int8 and bfloat16": (folder / "int8.xml", "bfloat16"),
    }


def sample(image: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the inputs of an exported file."""
    return {"images": image[None].numpy(), "sizes": np.array([image.shape[1:]], np.int64)}


def variants(folder: Path, size: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """Build all models; each function processes the image once."""
    image = make_image(*size)
    torch.manual_seed(0)
    model, torchvision = build_detectron2().eval(), build_torchvision().eval()
    for each in (model, torchvision):
        calibrate(each, make_run(each, image))
    runs: dict[str, Callable[[], Any]] = {"torchvision, float32": make_run(torchvision, image)}
    runs["PyTorch, float32"] = lambda: model.inference([{"image": image}], do_postprocess=False)
    files = write_files(model, image, folder)
    half = build_detectron2().eval()
    half.load_state_dict(model.state_dict())
    set_precision(half, "bfloat16")
    runs["PyTorch, bfloat16"] = lambda: half.inference([{"image": image}], do_postprocess=False)
    for name, (path, precision) in files.items():
        session = open_session(path, CPU)
        session.set_precision(precision)
        runs[name] = lambda session=session: session.run(**sample(image))
    return runs


def report(rounds: int, size: tuple[int, int]) -> str:
    """Measure all variants and return the report."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = variants(Path(folder), size)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if index:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["torchvision, float32"]
    rows = [f"| {name} | {value:.2f} | {value / base:.2f} |" for name, value in medians.items()]
    return (
        f"# Exported models, one {size[0]}x{size[1]} image\n\n"
        f"ResNet101-FPN Mask R-CNN, batch 1, {rounds} rounds alternating, {torch.get_num_threads()} threads, PyTorch "
        f"{torch.__version__}, {platform.machine()}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. "
        "Made by `python benchmarks/export.py`.\n\n"
        "| model | median s | / torchvision's |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="images per model (default: 5)")
    parser.add_argument("--size", type=int, nargs=2, default=(HEIGHT, WIDTH), metavar=("H", "W"), help="of the image")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    print_report(report(args.rounds, tuple(args.size)), args.output)


if __name__ == "__main__":
    main()
