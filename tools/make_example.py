"""Write the files of ``d2_maskrcnn/example``: a trained model in float16, and two images of shapes.

    python tools/make_example.py --weights output/quickstart/model_final.pth

The model keeps its config and class names; states that only a training needs are left out.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "datasets")]

from prepare_shapes import draw_image  # noqa: E402

from d2_maskrcnn import example  # noqa: E402
from d2_maskrcnn.weights.readers import read_weights  # noqa: E402

KEPT = ("config", "thing_classes", "category_ids", "iteration", "d2_maskrcnn")
SIZE = 384  # side of the images, in pixels
SEED, NUMBERS = 12, (127, 35)  # images with four and more shapes


def to_half(tensor: torch.Tensor) -> torch.Tensor:
    """Return a float tensor as float16.

    Raises:
        ValueError: a value is too large for float16.
    """
    half = tensor.half() if tensor.is_floating_point() else tensor
    if not torch.isfinite(half).all():
        raise ValueError(f"a value of {float(tensor.abs().max())} doesn't fit into float16")
    return half.contiguous().clone()


def main() -> None:
    """Write the model and the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of configs/quickstart.yaml")
    checkpoint: dict[str, Any] = read_weights(parser.parse_args().weights, copy_states=())
    model = {name: to_half(torch.as_tensor(value)) for name, value in checkpoint["model"].items()}
    metadata = {key: value for key, value in checkpoint["metadata"].items() if key in KEPT}
    torch.save({"model": model, "metadata": metadata}, example.WEIGHTS)
    for number, path in zip(NUMBERS, example.IMAGES, strict=True):
        image, _, _ = draw_image(np.random.default_rng([SEED, number]), SIZE)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 92])


if __name__ == "__main__":
    main()
