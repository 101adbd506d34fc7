"""Measure drawing, speed and memory of the video demo.

    python benchmarks/video.py --weights model.pth --config-file configs/mrcnn_R101.yaml --video in.mp4

* drawing: our annotator against the ``VideoVisualizer`` of the engine (Detectron2's own with
  ``D2_MASKRCNN_ENGINE=installed``);
* pipeline: the whole pipeline against the model alone;
* memory: resident memory over a long 4K video.

Without ``--weights`` the model has random weights.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import d2_maskrcnn
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data.resizer import Resizer
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks
from d2_maskrcnn.video.clip import Clip, Position
from d2_maskrcnn.video.frame import Frame
from d2_maskrcnn.video.run import Work, run_video
from d2_maskrcnn.video.sinks.group import Sinks
from d2_maskrcnn.video.sinks.video_file import VideoWriter
from d2_maskrcnn.video.sources.video import VideoSource
from d2_maskrcnn.video.workers import InProcess
from d2_maskrcnn.visualization import Annotator
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.video_visualizer import VideoVisualizer

NAMES = ["person", "car", "dog", "bicycle", "traffic light"]
SIZES = {"720p": (720, 1280), "4K": (2160, 3840)}
REPEATS = 7


def scene(size: tuple[int, int], count: int, step: int = 0) -> Detections:
    """Return ``count`` wavy disks of 6% to 30% of the image's height, which move with ``step``."""
    rng = np.random.default_rng(0)
    height, width = size
    sides = rng.uniform(0.06, 0.3, (count, 2)) * height
    centers = rng.uniform(0, 1, (count, 2)) * (width, height) + step * rng.normal(0, height / 500, (count, 2))
    boxes = np.concatenate((centers - sides / 2, centers + sides / 2), axis=1)
    boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
    y, x = np.mgrid[:28, :28] - 13.5
    lobes = rng.integers(2, 8, (count, 1, 1))
    radius = 11 + 2 * np.sin(np.arctan2(y, x) * lobes)
    probabilities = (1 / (1 + np.exp(2 * (np.hypot(x, y) - radius)))).astype(np.float32)
    keep = (boxes[:, 2] > boxes[:, 0] + 1) & (boxes[:, 3] > boxes[:, 1] + 1)
    scores, classes = rng.uniform(0.5, 1, count).astype(np.float32), rng.integers(0, len(NAMES), count)
    return Detections(boxes, scores, classes, size, BoxMasks(boxes, probabilities, size))[keep]


def median_seconds(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median of ``repeats`` runs after a warm-up run."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def drawing(name: str, count: int) -> tuple[float, float]:
    """Return seconds per frame of the engine's VideoVisualizer on whole-image masks, and of ours on 28x28 masks."""
    size = SIZES[name]
    detections = scene(size, count)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    instances = Instances(size, pred_boxes=Boxes(torch.from_numpy(detections.boxes)))
    instances.scores = torch.from_numpy(detections.scores)
    instances.pred_classes = torch.from_numpy(detections.classes)
    instances.pred_masks = torch.from_numpy(np.stack(list(detections.masks or [])))
    metadata = MetadataCatalog.get("video_benchmark").set(thing_classes=NAMES)
    theirs = VideoVisualizer(metadata)
    slow = median_seconds(lambda: theirs.draw_instance_predictions(image, instances).get_image(), 3)
    annotator = Annotator(NAMES)
    detections.track_ids = np.arange(len(detections))
    fast = median_seconds(lambda: annotator.draw(image, detections))
    return slow, fast


def pipeline(args: argparse.Namespace, folder: Path) -> tuple[list[tuple[float, float]], int]:
    """Return seconds per frame of the model alone and of the pipeline, for each round, and the mean detections."""
    opts = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", args.weights, *args.opts]
    cfg = load_config(args.config_file, opts)
    if not args.weights:
        torch.manual_seed(0)
        MaskRCNNCheckpointer(build_model(cfg), str(folder)).save("random")
        cfg.MODEL.WEIGHTS = str(folder / "random.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.threshold
    predictor, resizer = Predictor(cfg), Resizer(cfg)
    clip = Clip(end=Position(args.frames, False))
    frames = [(resizer(frame.image), frame.size) for frame in VideoSource(args.video, clip)]
    predictor.predict([frames[0][0]], [frames[0][1]])  # warm-up

    rounds = []
    for _ in range(args.rounds):  # alternating, so that other work on the machine affects both
        begin = time.perf_counter()
        with ThreadPoolExecutor(1) as thread:  # as in the pipeline: OpenMP behaves differently in the first thread
            detections = list(thread.map(lambda frame: predictor.predict([frame[0]], [frame[1]])[0], frames))
        alone = (time.perf_counter() - begin) / len(frames)
        source = VideoSource(args.video, clip)
        work = Work(InProcess(predictor), resizer, NAMES, [], threshold=args.threshold, tracking=True)
        begin = time.perf_counter()
        done = run_video(source, work, Sinks(video=VideoWriter(folder / "drawn.mp4", source.info)))
        rounds.append((alone, (time.perf_counter() - begin) / done))
    return rounds, round(statistics.mean(map(len, detections)))


class StandIn:
    """Return 50 detections per frame without a model, so that only the rest of the pipeline takes memory."""

    class_names = NAMES

    def __init__(self) -> None:
        self._step = 0

    def submit(self, inputs: list[Any], sizes: list[tuple[int, int]]) -> "Future[list[Detections]]":
        done: Future[list[Detections]] = Future()
        done.set_result([scene(size, 50, self._step + number) for number, size in enumerate(sizes)])
        self._step += len(sizes)
        return done

    def close(self) -> None:
        pass


class MemoryWatch:
    """Pass frames on to a writer and record the resident memory, in MiB, after each."""

    def __init__(self, writer: VideoWriter) -> None:
        self._writer = writer
        self.megabytes: list[float] = []

    def write(self, frame: Frame) -> None:
        self._writer.write(frame)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def close(self) -> None:
        self._writer.close()


def memory(folder: Path, frames: int) -> tuple[list[float], float]:
    """Return the resident memory after each frame of a 4K video with 50 instances, and seconds per frame."""
    path = folder / "4k.mp4"
    write_4k(path, frames)
    source = VideoSource(str(path))
    watch = MemoryWatch(VideoWriter(folder / "4k-drawn.mp4", source.info))
    cfg = load_config("", [])
    work = Work(StandIn(), Resizer(cfg), NAMES, [], tracking=True)  # type: ignore[arg-type]
    begin = time.perf_counter()
    run_video(source, work, Sinks(video=watch))
    seconds = (time.perf_counter() - begin) / frames
    with av.open(str(folder / "4k-drawn.mp4")) as container:
        assert container.streams.video[0].frames == frames
    return watch.megabytes, seconds


def write_4k(path: Path, frames: int) -> None:
    """Write a 4K video of a moving gradient."""
    height, width = SIZES["4K"]
    ramp = np.linspace(0, 255, 2 * width).astype(np.uint8)
    rows = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        image = np.empty((height, width, 3), np.uint8)
        for index in range(frames):
            shift = index * 7 % width
            image[:, :, 0], image[:, :, 1], image[:, :, 2] = ramp[shift : shift + width], rows, 90
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["drawing", "pipeline", "memory"])
    parser.add_argument("--config-file", default="configs/mrcnn_R101.yaml")
    parser.add_argument("--weights", default="")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--video", help="video for the pipeline (default: a generated 4K video)")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--frames", type=int, default=20, help="frames of the pipeline's video")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the pipeline")
    parser.add_argument("--memory-frames", type=int, default=1000)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


def main() -> None:
    """Run the chosen parts and print their results."""
    args = parse_args()
    print(f"engine: {d2_maskrcnn.engine_info()}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "drawing" in args.parts:
            for size, count in (("720p", 10), ("4K", 50)):
                slow, fast = drawing(size, count)
                print(
                    f"drawing {size}, {count} instances: VideoVisualizer {slow:.3f} s, ours {fast * 1e3:.1f} ms, "
                    f"{slow / fast:.0f} times as fast",
                    flush=True,
                )
        if "pipeline" in args.parts:
            if not args.video:
                args.video = str(folder / "video.mp4")
                write_4k(Path(args.video), args.frames)
            rounds, count = pipeline(args, folder)
            ratios = [whole / alone - 1 for alone, whole in rounds]
            alone, whole = (statistics.median(times) for times in zip(*rounds, strict=True))
            print(
                f"pipeline, {count} detections per frame: model alone {alone:.3f} s, pipeline {whole:.3f} s per frame; "
                f"{statistics.median(ratios):+.1%} (rounds: {', '.join(f'{r:+.1%}' for r in ratios)})",
                flush=True,
            )
        if "memory" in args.parts:
            megabytes, seconds = memory(folder, args.memory_frames)
            print(
                f"memory, 4K, 50 instances, {1 / seconds:.1f} frames per second: {megabytes[99]:.0f} MB at frame 100, "
                f"{megabytes[-1]:.0f} MB at frame {len(megabytes)}, at most {max(megabytes[99:]):.0f} MB in between"
            )


if __name__ == "__main__":
    main()
