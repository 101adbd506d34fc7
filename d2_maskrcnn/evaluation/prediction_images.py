"""Images of what a model finds: the annotation on the left, the predictions on the right."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import CropMasks
from d2_maskrcnn.structures.masks import decode_segmentation
from d2_maskrcnn.visualization import Annotator
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.structures import Instances

logger = logging.getLogger(__name__)

# Boxes (N, 4) XYXY in the image's pixels, masks (N, H, W) bool, classes and scores, each of length N.
Objects = tuple[torch.Tensor, torch.Tensor, list[int], list[float]]

MIN_SIDE = 384  # small images are enlarged to this, so that boxes and labels can be read


def draw_test_sets(cfg: CfgNode, model: nn.Module) -> None:
    """:func:`draw_predictions` of ``DATASETS.TEST`` in ``OUTPUT_DIR/predictions``, or a folder there for each of
    several datasets.
    """
    names = list(cfg.DATASETS.TEST)
    for name in names:
        folder = Path(cfg.OUTPUT_DIR, "predictions", *([name] if len(names) > 1 else []))
        draw_predictions(cfg, model, name, folder)


def draw_predictions(
    cfg: CfgNode, model: nn.Module, dataset_name: str, folder: Path, count: int = 8, threshold: float = 0.5
) -> list[Path]:
    """Runs ``model`` on the first images of a dataset and writes one JPEG for each.

    Args:
        cfg: the config the model was built from.
        model: takes a list of dicts; its training mode is left as it was.
        dataset_name: a registered dataset.
        folder: where ``<image>.jpg`` go; made if needed.
        count: images to draw.
        threshold: detections with a lower score are left out; in [0, 1].

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapper = MaskRCNNMapper(cfg, is_train=False)
    names = MetadataCatalog.get(dataset_name).get("thing_classes")
    written = []
    with inference_context(model), torch.no_grad():
        for record in DatasetCatalog.get(dataset_name)[:count]:
            found = model([mapper(record)])[0]["instances"].to("cpu")
            image = read_image(record["file_name"], "BGR")  # (H, W, 3) uint8
            boxes, masks, classes, scores = annotated(record)
            left = _draw(image, boxes, masks, classes, [math.nan] * len(scores), names)
            right = _draw(image, *detected(found, threshold), names)
            path = folder / f"{Path(record['file_name']).stem}.jpg"
            Image.fromarray(np.concatenate([left, right], axis=1)[:, :, ::-1]).save(path, quality=90)
            written.append(path)
    logger.info("Wrote %d images (annotation left, prediction right) to %s", len(written), folder)
    return written


def annotated(record: dict[str, Any]) -> Objects:
    """The objects of a record, without crowd regions; their scores are 1."""
    annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # COCO's boxes are XYWH
    size = (record["height"], record["width"])
    masks = [torch.from_numpy(decode_segmentation(a.get("segmentation"), *size)) for a in annotations]
    stacked = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool)
    return boxes, stacked, [a["category_id"] for a in annotations], [1.0] * len(annotations)


def detected(found: Instances, threshold: float) -> Objects:
    """What a model found with at least the score ``threshold``, in the image's frame; empty masks if it has none."""
    found = found[found.scores >= threshold]
    masks = found.pred_masks if found.has("pred_masks") else torch.zeros((len(found), *found.image_size)).bool()
    return found.pred_boxes.tensor, masks, found.pred_classes.tolist(), found.scores.tolist()


def _draw(
    image: np.ndarray,
    boxes: torch.Tensor,
    masks: torch.Tensor,
    classes: list[int],
    scores: list[float],
    names: list[str] | None,
) -> np.ndarray:
    """Draws on a copy of ``image`` ((H, W, 3) uint8 BGR), enlarged towards ``MIN_SIDE`` where it is smaller."""
    scale = max(1, round(MIN_SIDE / min(image.shape[:2])))
    image = image.repeat(scale, 0).repeat(scale, 1)
    size = image.shape[:2]
    large = masks.numpy().repeat(scale, 1).repeat(scale, 2)
    found = Detections(
        boxes.numpy() * scale,
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        size,
        CropMasks.from_images(large, size),
    )
    Annotator(names or ()).draw(image, found)
    return image
