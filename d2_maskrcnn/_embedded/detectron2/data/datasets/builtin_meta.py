"""Categories of COCO, without reading a file."""

from __future__ import annotations

import colorsys
from typing import Any

from detectron2._names import not_in_engine

__all__ = ["COCO_CATEGORIES", "get_coco_instances_meta"]

# The 80 categories of COCO's detection and instance segmentation tasks, in the order of their ids
# (https://cocodataset.org).
_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    *("chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator"),
    *("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
_UNUSED_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))  # of 1 to 90: categories that were never annotated
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def _color(index: int) -> list[int]:
    """Return an RGB color in [0, 255]. Steps of the golden ratio around the color wheel keep neighbors apart."""
    saturation, value = (0.95, 0.65, 0.8)[index % 3], (1.0, 0.9, 0.75, 0.6)[index % 4]
    return [round(255 * part) for part in colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1.0, saturation, value)]


_IDS = [number for number in range(1, 91) if number not in _UNUSED_IDS]
COCO_CATEGORIES: list[dict[str, Any]] = [
    {"id": number, "name": name, "isthing": 1, "color": _color(index)}
    for index, (number, name) in enumerate(zip(_IDS, _NAMES, strict=True))
]


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """Return the metadata of the built-in dataset ``"coco"``, by Detectron2's name of this function."""
    if dataset_name != "coco":
        raise not_in_engine(f"metadata of the built-in dataset {dataset_name!r}", "datasets other than COCO")
    return get_coco_instances_meta()


def get_coco_instances_meta() -> dict[str, Any]:
    """Return class names, colors, and the map from COCO's category ids (1 to 90) to 0 ... 79."""
    return {
        "thing_dataset_id_to_contiguous_id": {cat["id"]: index for index, cat in enumerate(COCO_CATEGORIES)},
        "thing_classes": [cat["name"] for cat in COCO_CATEGORIES],
        "thing_colors": [cat["color"] for cat in COCO_CATEGORIES],
    }


_get_coco_instances_meta = get_coco_instances_meta  # Detectron2's name
