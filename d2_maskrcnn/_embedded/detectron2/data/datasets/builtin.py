"""Register the splits of COCO, in COCO's own folder layout below ``$DETECTRON2_DATASETS`` (default: ``datasets``):

``coco/annotations/instances_{train,val}2017.json`` (and the other JSON files named below),
``coco/{train,val,test}2017/``, ``coco/{train,val}2014/``.
"""

from __future__ import annotations

import os

from detectron2._names import lookup
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata, get_coco_instances_meta
from detectron2.data.datasets.coco import register_coco_instances

__all__ = ["COCO_SPLITS", "_get_builtin_metadata", "register_all_coco"]

# Name -> (image folder, annotation file), both in the folder `coco`.
COCO_SPLITS = {
    "coco_2014_train": ("train2014", "instances_train2014"),
    "coco_2014_val": ("val2014", "instances_val2014"),
    "coco_2014_minival": ("val2014", "instances_minival2014"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "coco_2017_train": ("train2017", "instances_train2017"),
    "coco_2017_val": ("val2017", "instances_val2017"),
    "coco_2017_test": ("test2017", "image_info_test2017"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100"),
}


def register_all_coco(root: str) -> None:
    """Register all splits of COCO below the folder ``root``.

    Raises:
        ValueError: one of them is registered already.
    """
    for name, (folder, file) in COCO_SPLITS.items():
        json_file = os.path.join(root, "coco", "annotations", f"{file}.json")
        register_coco_instances(name, get_coco_instances_meta(), json_file, os.path.join(root, "coco", folder))


register_all_coco(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))

__getattr__ = lookup(__name__)
