"""A detector of a few weights and a synthetic dataset, for tests of training (also in other processes)."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

import d2_maskrcnn  # noqa: F401
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances

HEIGHT, WIDTH = 40, 60
BOX = (10.0, 5.0, 30.0, 25.0)  # XYXY, the same object in every image


@META_ARCH_REGISTRY.register()
class TinyDetector(nn.Module):
    """Train two numbers on the mean of the images; always detect the true object and a false one."""

    def __init__(self, cfg):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)
        self.steady = nn.Parameter(torch.tensor([4.0]))  # its gradient does not depend on the images
        self.to(cfg.MODEL.DEVICE)

    def forward(self, batched_inputs):
        if not self.training:
            return [self.find(record) for record in batched_inputs]
        brightness = torch.stack([record["image"].float().mean() / 255 for record in batched_inputs])
        predicted = self.layer(self.norm(brightness[:, None]))
        return {"loss_layer": (predicted - 0.5).square().mean(), "loss_steady": self.steady.square().sum()}

    @staticmethod
    def find(record):
        height, width = record["height"], record["width"]
        boxes = torch.tensor([BOX, (1.0, 1.0, 4.0, 4.0)])
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        scores, classes = torch.tensor([0.9, 0.3]), torch.tensor([0, 1])
        instances = Instances((height, width), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        instances.pred_masks = masks
        return {"instances": instances}


class TinyTrainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "inference"))


def make_dataset(folder, name, num_images=6):
    """Create images and their COCO JSON, and register both under ``name``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    x0, y0, x1, y1 = BOX
    for index in range(num_images):
        image = np.full((HEIGHT, WIDTH, 3), 20 * index, dtype=np.uint8)
        image[int(y0) : int(y1), int(x0) : int(x1)] = 255
        cv2.imwrite(str(folder / f"{index}.png"), image)
        images.append({"id": index + 1, "file_name": f"{index}.png", "height": HEIGHT, "width": WIDTH})
        annotations.append(
            {
                "id": index + 1,
                "image_id": index + 1,
                "category_id": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            }
        )
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "ghost"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_instances(name, {}, str(folder / "annotations.json"), str(folder))
    DatasetCatalog.get(name)  # reads the names of the classes
    return name


def make_cfg(dataset, output_dir, *settings):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "TinyDetector", "OUTPUT_DIR", str(output_dir)]
        + ["DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,), "DATALOADER.NUM_WORKERS", 0, "SEED", 3]
        + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 8, "SOLVER.STEPS", (6,), "SOLVER.WARMUP_ITERS", 2]
        + ["SOLVER.BASE_LR", 0.05, "SOLVER.CHECKPOINT_PERIOD", 3]
        + ["INPUT.MIN_SIZE_TRAIN", (HEIGHT,), "INPUT.MIN_SIZE_TEST", HEIGHT, *settings]
    )
    return cfg
