"""Dataset formats. Importing this package registers the built-in datasets."""

from detectron2._names import lookup
from detectron2.data.datasets import builtin, builtin_meta
from detectron2.data.datasets._coco_export import convert_to_coco_dict, convert_to_coco_json
from detectron2.data.datasets.coco import load_coco_json, register_coco_instances

__all__ = [
    "builtin",
    "builtin_meta",
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "register_coco_instances",
]

__getattr__ = lookup(__name__)
