"""Write the files of ``d2_maskrcnn/example``: a trained model in float16, and two images of shapes.

    python tools/make_example.py --weights output/quickstart/model_final.pth

The model keeps its config and class names; states that only a training needs are left out. To stay below 8 MB, the
box head loses the few units that matter least, and all tensors share one storage: each costs 100 bytes otherwise.
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
from detectron2.config import CfgNode  # noqa: E402

UNITS = 246  # width of the box head, 256 in the config
BOX_HEAD, OUTPUTS = "roi_heads.box_head.", ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
KEPT = ("config", "thing_classes", "category_ids", "iteration", "d2_maskrcnn")
SIZE = 384  # side of the images, in pixels
SEED, NUMBERS = 12, (127, 35)  # images with four and more shapes


def drop_units(model: dict[str, torch.Tensor], layer: str, following: tuple[str, ...]) -> None:
    """Keep the ``UNITS`` units of a linear layer with the largest products of incoming and outgoing weights, in place.

    Args:
        model: state dict. layer: name of the layer, with (units, inputs) weights.
        following: names of the layers with (outputs, units) weights that read its units.
    """
    outgoing = torch.cat([model[f"{name}.weight"] for name in following])
    importance = model[f"{layer}.weight"].norm(dim=1) * outgoing.norm(dim=0)
    kept = importance.topk(UNITS).indices.sort().values
    for name in ("weight", "bias"):
        model[f"{layer}.{name}"] = model[f"{layer}.{name}"][kept]
    for name in following:
        model[f"{name}.weight"] = model[f"{name}.weight"][:, kept]


def to_half(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors as float16, as parts of one storage.

    Raises:
        ValueError: a value is too large for float16.
    """
    storage = torch.cat([value.flatten() for value in model.values()]).half()
    if not torch.isfinite(storage).all():
        raise ValueError("a value doesn't fit into float16")
    parts = storage.split([value.numel() for value in model.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(model.items(), parts, strict=True)}


def main() -> None:
    """Write the model and the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of configs/quickstart.yaml")
    checkpoint: dict[str, Any] = read_weights(parser.parse_args().weights, copy_states=())
    model = {name: torch.as_tensor(value) for name, value in checkpoint["model"].items()}
    model = {
        name: value.float() for name, value in model.items() if value.is_floating_point()
    }  # no counters of batches
    drop_units(model, f"{BOX_HEAD}fc2", OUTPUTS)
    drop_units(model, f"{BOX_HEAD}fc1", (f"{BOX_HEAD}fc2",))
    metadata = {key: value for key, value in checkpoint["metadata"].items() if key in KEPT}
    cfg = CfgNode.load_cfg(metadata["config"])
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = UNITS
    metadata["config"] = cfg.dump()
    torch.save({"model": to_half(model), "metadata": metadata}, example.WEIGHTS)
    for number, path in zip(NUMBERS, example.IMAGES, strict=True):
        image, _, _ = draw_image(np.random.default_rng([SEED, number]), SIZE)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 92])


if __name__ == "__main__":
    main()
