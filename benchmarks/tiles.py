"""Measure time and memory of prediction by tiles for growing images, decoded by windows and as a whole.

    python benchmarks/tiles.py --output benchmarks/results/tiles.md
    python benchmarks/tiles.py --sides 40000 --every 64      # a gigapixel image, mostly empty

Each image is a deflated TIFF of tiles with copies of one of the package's images, enlarged to ``BLOCK`` pixels and
shifted. A process of its own predicts it with the example model in tiles of the same size, writes the detections as
JSON, and reports its processor time and peak memory; loading the model does not count for the time. The first row is an
image of one tile.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image

from d2_maskrcnn import Predictor, example
from d2_maskrcnn.data import large_images

BLOCK = 512  # pixels: the example model sees them at a quarter of their size, as in its training
STORED_TILE = 256


def write_image(path: Path, side: int, every: int) -> None:
    """Write an image of ``side`` x ``side`` pixels, of which one block in ``every`` contains objects."""
    with Image.open(example.IMAGES[0]) as image:
        pixels = np.asarray(image.convert("RGB").resize((BLOCK, BLOCK)))
    rows = -(-side // STORED_TILE)
    per_block = BLOCK // STORED_TILE

    def tiles() -> Iterator[np.ndarray | None]:
        for row in range(rows):
            for column in range(rows):
                block = row // per_block * (rows // per_block + 1) + column // per_block
                y, x = row % per_block * STORED_TILE, column % per_block * STORED_TILE
                shifted = np.roll(pixels, (block * 37 % BLOCK, block * 91 % BLOCK), (0, 1))
                yield None if block % every else np.ascontiguousarray(shifted[y : y + STORED_TILE, x : x + STORED_TILE])

    options = {"tile": (STORED_TILE, STORED_TILE), "compression": "deflate", "photometric": "rgb", "bigtiff": True}
    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, **options)


def predict(path: str, by_windows: bool) -> None:
    """Predict an image and print the time, the peak memory and the number of objects as JSON."""
    torch.set_num_threads(1)
    large_images.MIN_PIXELS = 0 if by_windows else sys.maxsize
    predictor = Predictor(example.WEIGHTS, device="cpu", tile=BLOCK)
    predictor(np.zeros((BLOCK, BLOCK, 3), np.uint8))  # loads what is loaded late
    start = time.process_time()
    results = predictor(path)
    Path(path).with_suffix(".json").write_text(results.to_json())
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "peak": peak, "objects": len(results)}))


def measure(path: Path, by_windows: bool) -> dict[str, Any]:
    """Run :func:`predict` in a process of its own."""
    command = [sys.executable, __file__, "--predict", str(path), *([] if by_windows else ["--whole"])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    """Measure all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[BLOCK, 2000, 4000, 8000, 16_000], help="of the images")
    parser.add_argument("--every", type=int, default=1, help="one block in so many contains objects (1: all)")
    parser.add_argument("--compare", type=int, default=8000, help="side up to which images are also decoded as a whole")
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--predict", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.predict:
        predict(args.predict, not args.whole)
        return
    lines = [
        "# Large images by tiles",
        "",
        f"Example model, tiles of {BLOCK} pixels with an overlap of 0.2 and once as a whole; deflated TIFF of "
        f"tiles of {STORED_TILE} pixels, objects in one block of {BLOCK} pixels in {args.every}. Processor time of "
        f"one thread, {platform.machine()}, PyTorch {torch.__version__}. Made by `python benchmarks/tiles.py`.",
        "",
        "| image | decoded | objects | s | ms per megapixel | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for side in args.sides:
            path = Path(folder) / f"{side}.tif"
            write_image(path, side, args.every)
            for by_windows in (True, False)[: 2 if side <= args.compare else 1]:
                result = measure(path, by_windows)
                per_megapixel = 1e3 * result["seconds"] / (side * side / 1e6)
                lines.append(
                    f"| {side} x {side} | {'by windows' if by_windows else 'as a whole'} | {result['objects']} | "
                    f"{result['seconds']:.1f} | {per_megapixel:.0f} | {result['peak']:.0f} |"
                )
                print(lines[-1], flush=True)
            path.unlink()
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
