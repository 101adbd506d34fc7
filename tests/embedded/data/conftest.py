"""A synthetic dataset of three small images in COCO's format."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detectron2.data import DatasetCatalog, MetadataCatalog

CATEGORIES = [{"id": 3, "name": "square"}, {"id": 7, "name": "triangle"}]  # sparse ids, as in COCO


def _square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def _annotations():
    crowd = np.zeros((40, 60), dtype=np.uint8)
    crowd[5:20, 30:50] = 1
    runs = np.flatnonzero(np.diff(np.concatenate([[2], crowd.flatten(order="F"), [2]])))
    return [
        {"id": 1, "image_id": 10, "category_id": 3, "bbox": [4.0, 6.0, 10.0, 10.0], "iscrowd": 0, "area": 100.0}
        | {"segmentation": [_square(4.0, 6.0, 10.0)]},
        {"id": 2, "image_id": 10, "category_id": 7, "bbox": [20.0, 10.0, 12.0, 8.0], "iscrowd": 0, "area": 48.0}
        | {"segmentation": [[20.0, 18.0, 32.0, 18.0, 26.0, 10.0], [1.0, 2.0, 3.0, 4.0]]},  # the second is a line
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [30, 5, 20, 15], "iscrowd": 1, "area": 300}
        | {"segmentation": {"size": [40, 60], "counts": np.diff(runs).tolist()}},
        {"id": 4, "image_id": 11, "category_id": 3, "bbox": [1.0, 1.0, 5.0, 5.0], "iscrowd": 0, "area": 25.0}
        | {"segmentation": [[1.0, 2.0, 3.0, 4.0]]},  # nothing but a line: left out
        {"id": 5, "image_id": 11, "category_id": 7, "bbox": [30.0, 10.0, 20.0, 20.0], "iscrowd": 0, "area": 400.0}
        | {"segmentation": [_square(30.0, 10.0, 20.0)]},
    ]


def write_coco(folder: Path) -> SimpleNamespace:
    """Three images (ids 10, 11, 12; the last without annotations) and their annotation file, below ``folder``."""
    images = folder / "images"
    images.mkdir()
    annotations = _annotations()
    entries = []
    rng = np.random.RandomState(0)
    for image_id, (width, height) in {12: (30, 50), 10: (60, 40), 11: (64, 48)}.items():  # not in the order of the ids
        image = Image.fromarray(rng.randint(0, 60, (height, width, 3), dtype=np.uint8))
        for anno in annotations:
            if anno["image_id"] == image_id and isinstance(anno["segmentation"], list):
                ImageDraw.Draw(image).polygon(anno["segmentation"][0], fill=(250, 120, 30))
        image.save(images / f"{image_id}.png")
        entries.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
    data = {"info": {}, "images": entries, "annotations": annotations, "categories": CATEGORIES[::-1]}
    json_file = folder / "annotations.json"
    json_file.write_text(json.dumps(data))
    return SimpleNamespace(json_file=str(json_file), images=str(images), data=data)


@pytest.fixture
def tiny_coco(tmp_path):
    return write_coco(tmp_path)


@pytest.fixture
def clean_catalogs():
    """Remove what a test has registered."""
    datasets, metadata = dict(DatasetCatalog), dict(MetadataCatalog)
    yield
    for catalog, before in ((DatasetCatalog, datasets), (MetadataCatalog, metadata)):
        for name in set(catalog) - set(before):
            catalog.remove(name)
