"""Time and peak memory of a ResNet101-FPN Mask R-CNN on one image: this project's, torchvision's and Detectron2's
own.

    python benchmarks/inference.py                # Detectron2's own where it is installed
    python benchmarks/inference.py --output benchmarks/results/inference.md

One image of 800 x 1200 pixels, batch 1, float32, on the CPU, 80 classes, 1,000 proposals and 100 detections with
masks of the whole image. Each model lives in a process of its own, which gives its peak memory; they take turns,
one forward pass each, so that other work on the machine hits all of them alike. The weights are random and scaled so
that all find 1,000 proposals and 100 detections. Seconds depend on the machine and on what
else it does: compare the ratios; CPU seconds, summed over the threads, are disturbed least.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

HEIGHT, WIDTH, CLASSES = 800, 1200, 80
PROPOSALS, DETECTIONS = 1000, 100


def draw_image() -> torch.Tensor:
    """(3, HEIGHT, WIDTH) uint8: noise at several scales, the same each time."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(1, 3, HEIGHT // s, WIDTH // s, generator=generator) for s in (1, 8, 50, 200)]
    total = sum(nn.functional.interpolate(layer, size=(HEIGHT, WIDTH), mode="bilinear") for layer in layers)
    return (total[0] * (255 / len(layers))).to(torch.uint8)


def build_detectron2(ours: bool) -> tuple[nn.Module, Callable[[], int]]:
    import d2_maskrcnn
    from d2_maskrcnn.config import use_d2_maskrcnn_components
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    d2_maskrcnn.add_d2_maskrcnn_config(cfg)
    cfg.merge_from_file(str(Path(__file__).parent.parent / "configs" / "mrcnn_R101.yaml"))
    if ours:
        use_d2_maskrcnn_components(cfg)
    else:
        cfg.merge_from_list(
            [
                *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
                *("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
                *("MODEL.RPN.HEAD_NAME", "StandardRPNHead", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
                *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
                *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            ]
        )
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg)
    item = {"image": draw_image(), "height": HEIGHT, "width": WIDTH}

    def run() -> int:
        masks = model([item])[0]["instances"].pred_masks
        assert masks.shape[1:] == (HEIGHT, WIDTH)
        return len(masks)

    return model, run


def build_torchvision() -> tuple[nn.Module, Callable[[], int]]:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet101", weights=None)
    model = MaskRCNN(
        backbone, num_classes=CLASSES + 1, rpn_post_nms_top_n_test=PROPOSALS, box_detections_per_img=DETECTIONS
    )
    image = draw_image().float() / 255

    def run() -> int:
        masks = model([image])[0]["masks"]
        assert masks.shape[1:] == (1, HEIGHT, WIDTH)
        return len(masks)

    return model, run


def calibrate(model: nn.Module, run: Callable[[], int]) -> None:
    """Random weights whose activations neither grow with depth nor make every score the same."""
    for name, tensor in model.named_buffers():
        if name.endswith(("conv3.norm.weight", "bn3.weight")):
            tensor.fill_(0.2)  # a block adds little to its shortcut
    predictor: Any = model.get_submodule("roi_heads.box_predictor")
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    outputs: list[torch.Tensor] = []
    hook = predictor.cls_score.register_forward_hook(lambda module, args, output: outputs.append(output))
    run()
    hook.remove()
    with torch.no_grad():
        predictor.cls_score.weight.mul_(2.0 / outputs[0].std())


def count(model: nn.Module, run: Callable[[], int]) -> tuple[int, int]:
    """Proposals and detections of one forward pass."""
    proposals: list[int] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        found = next(arg for arg in args if isinstance(arg, list))  # one element: one image
        proposals.append(len(found[0]))

    hook = model.get_submodule("roi_heads").register_forward_pre_hook(look)
    detections = run()
    hook.remove()
    return proposals[0], detections


def peak_gigabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if platform.system() == "Darwin" else 2**20)


@torch.no_grad()
def work(name: str) -> None:
    """Answers each line on stdin with the seconds of a forward pass; at the end with a summary."""
    torch.manual_seed(0)
    model, run = build_torchvision() if name == "torchvision" else build_detectron2(ours=name == "d2_maskrcnn")
    model.eval()
    loaded = peak_gigabytes()
    calibrate(model, run)
    proposals, detections = count(model, run)
    print(json.dumps({"proposals": proposals, "detections": detections, "loaded": loaded}), flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak_gigabytes()}), flush=True)


class Worker:
    """A process that holds one model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},  # threads that wait take no time from the others
        )
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peak = 0.0
        first = self._answer()
        self.loaded, found = first["loaded"], (first["proposals"], first["detections"])
        if found != (PROPOSALS, DETECTIONS):
            raise RuntimeError(f"{name} has {found} proposals and detections instead of {(PROPOSALS, DETECTIONS)}")

    def run(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.cpu_seconds.append(answer["cpu_seconds"])
        self.peak = answer["peak"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the process of {self.name} ended with status {self.process.wait()}")


def table(workers: list[Worker]) -> str:
    base = next(worker for worker in workers if worker.name == "torchvision")
    lines = [
        "| model | median s | / torchvision's | median CPU s | / torchvision's | peak GB | / torchvision's "
        "| of the peak, before the first image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for worker in workers:
        seconds, base_seconds = statistics.median(worker.seconds), statistics.median(base.seconds)
        cpu, base_cpu = statistics.median(worker.cpu_seconds), statistics.median(base.cpu_seconds)
        lines.append(
            f"| {worker.name} | {seconds:.2f} | {seconds / base_seconds:.2f} | {cpu:.2f} | {cpu / base_cpu:.2f} "
            f"| {worker.peak:.2f} | {worker.peak / base.peak:.2f} | {worker.loaded:.2f} |"
        )
    return "\n".join(lines)


def report(rounds: int) -> str:
    import d2_maskrcnn

    names = ["d2_maskrcnn", "torchvision"]
    engine = d2_maskrcnn.engine_info()
    if engine.name == "installed":
        names.append("detectron2")
    workers = [Worker(name) for name in names]
    for _ in range(rounds):
        for worker in workers:
            worker.run()
    for worker in workers:
        worker.close()
    return (
        f"# Inference, one {HEIGHT}x{WIDTH} image\n\n"
        f"ResNet101-FPN Mask R-CNN, float32, batch 1, {PROPOSALS} proposals, {DETECTIONS} detections, {rounds} rounds "
        f"taking turns, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, engine: {engine.name} "
        f"detectron2 {engine.version}, load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores. "
        f"Made by `python benchmarks/inference.py`.\n\n{table(workers)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="forward passes of each model (default: 7)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    text = report(args.rounds)
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
