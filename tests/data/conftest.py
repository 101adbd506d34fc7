"""A valid COCO dataset of a few images, which tests then damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn import UserError
from d2_maskrcnn.data import check_coco_json
from d2_maskrcnn.data.flaws.find_flaws import Purpose

SIZES = [(40, 30), (30, 40), (50, 50), (64, 32)]  # width, height


class CocoFolder:
    """A folder with images and a COCO JSON file; ``data`` is what :meth:`write` writes."""

    def __init__(self, root: Path) -> None:
        self.json_file, self.images = root / "annotations" / "instances_train.json", root / "train"
        self.images.mkdir(parents=True)
        self.json_file.parent.mkdir()
        rng = np.random.default_rng(0)
        for number, (width, height) in enumerate(SIZES):
            pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / f"{number}.jpg")
        self.data: dict[str, Any] = {
            "images": [
                {"id": 10 + i, "file_name": f"{i}.jpg", "width": width, "height": height}
                for i, (width, height) in enumerate(SIZES)
            ],
            "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
            "annotations": [self.annotation(i + 1, 10 + i, (5, 9)[i % 2]) for i in range(3)],
        }
        self.write()

    @staticmethod
    def annotation(number: int, image_id: int, category_id: int, **changes: Any) -> dict[str, Any]:
        return {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [2.0, 3.0, 10.0, 8.0],
            "area": 80.0,
            "iscrowd": 0,
            "segmentation": [[2.0, 3.0, 12.0, 3.0, 12.0, 11.0, 2.0, 11.0]],
            **changes,
        }

    def write(self) -> None:
        self.json_file.write_text(json.dumps(self.data))

    def error(self, **options: Any) -> str:
        """Write ``data`` and return the one line with which it is refused."""
        self.write()
        with pytest.raises(UserError) as error:
            check_coco_json(self.json_file, self.images, Purpose(**options))
        message = str(error.value)
        assert "\n" not in message
        assert str(self.json_file) in message or str(self.images) in message
        return message


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path / "pets")
