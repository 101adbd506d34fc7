"""Command lines of demo.py, the inspection and train_net.py, with odd, missing and contradictory arguments."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from d2_maskrcnn.cli import demo, inspect, train
from d2_maskrcnn.cli.main import build_parser
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.engine import Trainer
from d2_maskrcnn.engine.launch import check_processes
from d2_maskrcnn.engine.setup import prepared
from tools.fuzz import tiny, videos
from tools.fuzz.harness import Input, expect

COUNT = 90
WORDS = (
    "",
    "0",
    "-1",
    "1",
    "2",
    "1e9",
    "nan",
    "inf",
    "0.05",
    "x",
    "--",
    "~",
    "*.png",
    "a\nb",
    "\udcff",
    "None",
    "🍎",
    "1:02",
    "3s",
)
DEMO = (
    "--confidence-threshold", "--classes", "--start", "--end", "--stride", "--batch-size", "--device", "--precision",
    "--timeout", "--save-json", "--save-csv", "--output", "--input", "--video-input", "--config-file", "--foo",
)  # fmt: skip
INSPECT = ("--parts", "--score-threshold", "--samples", "--layers", "--weights", "--compare", "--annotations", "--foo")
TRAIN = ("--num-gpus", "--num-machines", "--machine-rank", "--dist-url", "--config-file", "--foo")


def prepare(folder: Path) -> None:
    """Write a dataset, images, a video and the weights of an untrained model."""
    tiny.draw(folder)
    for number in range(2):
        Image.new("RGB", (40, 30), (90 * number, 80, 10)).save(folder / f"{number}.png")
    videos.write(folder / "v.mp4", [number / videos.Fraction(10) for number in range(4)])
    model = Trainer.build_model(tiny.config(tiny.options(folder, folder / "out")))
    torch.save({"model": model.state_dict()}, folder / "w.pth")


def make(rng: random.Random, shared: Path, folder: Path) -> Input:
    """Add one to three odd arguments to a valid command line."""
    program = rng.choice(("demo", "demo", "demo", "inspect", "train"))
    known = {"demo": DEMO, "inspect": INSPECT, "train": TRAIN}[program]
    odd: list[str] = []
    for flag in rng.sample(known, rng.choice((0, 1, 1, 1, 2, 3))):
        words = rng.choices(WORDS, k=rng.choice((0, 1, 1, 1, 2)))
        inside = flag in ("--save-json", "--save-csv", "--output") and words  # nothing is written elsewhere
        odd += [flag, *([f"{folder}/{words[0]}"] if inside else words)]
    opts = [*tiny.options(shared, folder / "out"), "MODEL.WEIGHTS", str(shared / "w.pth")]
    if rng.random() < 0.2:
        opts = opts[: rng.randrange(len(opts))] + rng.choices(WORDS, k=rng.choice((1, 2)))
        opts += ["OUTPUT_DIR", str(folder / "out")]
    run = {"demo": _demo, "inspect": _inspect, "train": _train}[program]
    return Input(f"{program} {odd!r:.300}", lambda: run(rng, odd, opts, shared, folder))


def _demo(rng: random.Random, odd: list[str], opts: list[str], shared: Path, folder: Path) -> None:
    is_video = rng.random() < 0.4
    source = (
        ["--video-input", str(shared / "v.mp4")] if is_video else ["--input", *map(str, sorted(shared.glob("?.png")))]
    )
    path = folder / "r.json"
    words = ["--config-file", tiny.CONFIG, "--no-show", "--save-json", str(path), *source, *odd, "--opts", *opts]
    demo.run(build_parser(demo, "demo.py").parse_args(words))
    if not path.exists():
        expect("--save-json" in odd, "nothing was written")
        return
    lines = path.read_text().splitlines() if is_video else [path.read_text()]
    detections: list[Any] = []
    for line in lines:
        content = json.loads(line)
        detections += content["detections"] if is_video and isinstance(content, dict) else content
    for each in detections:
        expect(0 <= each["score"] <= 1 and all(abs(value) < 1e4 for value in each["bbox"]), f"impossible {each}")


def _inspect(rng: random.Random, odd: list[str], opts: list[str], shared: Path, folder: Path) -> None:
    words = ["--config-file", tiny.CONFIG, "--output", str(folder / "report"), "--input", str(shared / "1.png")]
    args = build_parser(inspect, "inspect").parse_args([*words, "--parts", "result", *odd, "--opts", *opts])
    inspect.run(args)
    page = args.output / "report.html"
    expect("</html>" in page.read_text(), "the report is not complete")


def _train(rng: random.Random, odd: list[str], opts: list[str], shared: Path, folder: Path) -> None:
    args = build_parser(train, "train_net.py").parse_args(["--config-file", tiny.CONFIG, *odd, *opts])
    check_processes(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    expect(1 <= args.num_gpus <= 1024 and args.num_machines <= 65536, f"{args.num_gpus} processes")
    with prepared(load_config(args.config_file, args.opts), train=rng.random() >= 0.3):
        expect((folder / "out" / "config.yaml").is_file(), "no config.yaml was written")
