"""Draw the ground truth of test images beside the predictions of a model."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper, dataset_records
from d2_maskrcnn.data.ground_truth import ground_truth_detections
from d2_maskrcnn.data.image_reading import read_display
from d2_maskrcnn.errors import warn_on_failure
from d2_maskrcnn.evaluation.outcomes import compare
from d2_maskrcnn.evaluation.tiled import TiledModel, without_pixels
from d2_maskrcnn.image_files import MAX_PIXELS
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import CropMasks
from d2_maskrcnn.structures.masks import Window
from d2_maskrcnn.visualization import Annotator
from d2_maskrcnn.visualization.palette import choose_colors
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context

Record = dict[str, Any]

# Small images are enlarged until their shorter side has MIN_SIDE pixels, so that labels are readable, unless the longer
# one would exceed MAX_SIDE.
MIN_SIDE, MAX_SIDE = 384, 2048
JPEG_MAX_SIDE = 65_500

logger = logging.getLogger(__name__)


def draw_test_sets(cfg: CfgNode, model: nn.Module) -> None:
    """Draw predictions on ``DATASETS.TEST`` into ``OUTPUT_DIR/predictions``; each of several sets has a subfolder.

    See :func:`draw_predictions`.
    """
    names = list(cfg.DATASETS.TEST)
    for name in names:
        folder = Path(cfg.OUTPUT_DIR, "predictions", *([name] if len(names) > 1 else []))
        with warn_on_failure(f"Drawing predictions on {name}"):
            draw_predictions(cfg, model, name, folder)


def draw_predictions(
    cfg: CfgNode, model: nn.Module, dataset_name: str, folder: Path, count: int = 8, threshold: float = 0.5
) -> list[Path]:
    """Draw the first images of a dataset, with the ground truth on the left and predictions on the right.

    An object and the prediction that matches it have the same color. False positives, false negatives and wrong classes
    have dashed boxes and a tag.

    Args:
        cfg: the config that the model was built from.
        model: takes a list of dicts; its training mode is restored.
        dataset_name: a registered dataset.
        folder: where the JPEG files are written; created if needed.
        count: images to draw.
        threshold: predictions with a lower score are not drawn; in [0, 1].

    Returns:
        The files, named after the images (see :func:`unique_names`). An image that cannot be drawn is left out with a
        warning, and one of more than ``MAX_PIXELS`` without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = first_records(dataset_name, count)
    class_names = MetadataCatalog.get(dataset_name).get("thing_classes") or ()  # known once the records are loaded
    names = unique_names([str(Path(record["file_name"]).with_suffix("")) for record in records])
    written = []
    for record, name in zip(records, names, strict=True):
        if (pixels := record.get("width", 0) * record.get("height", 0)) > MAX_PIXELS:
            logger.info("%s: %.0f megapixels are not drawn", record["file_name"], pixels / 1e6)
            continue
        with warn_on_failure(f"Drawing predictions on {record['file_name']}"):
            panels = _draw_panels(
                read_display(record["file_name"], cfg.INPUT.FORMAT)[:, :, ::-1],
                *predict_record(cfg, model, record, threshold),
                class_names,
            )
            axis = 1 if 2 * panels[0].shape[1] <= JPEG_MAX_SIDE else 0
            path = folder / f"{name}.jpg"
            Image.fromarray(np.concatenate(panels, axis=axis)[:, :, ::-1]).save(path, quality=90)
            written.append(path)
    logger.info("Wrote %d images (ground truth left, predictions right) to %s", len(written), folder)
    return written


def first_records(dataset_name: str, count: int) -> list[Record]:
    """Return the first ``count`` records of a registered dataset, or all if it has fewer."""
    records = dataset_records(dataset_name)
    return [records[index] for index in range(min(count, len(records)))]


@torch.no_grad()
def predict_record(cfg: CfgNode, model: nn.Module, record: Record, threshold: float) -> tuple[Detections, Detections]:
    """Run a model on the image of a dataset record.

    Args:
        cfg: the config that the model was built from.
        model: takes a list of dicts; its training mode is restored.
        record: in Detectron2's standard dataset format.
        threshold: least score of the predictions that are returned, in [0, 1].

    Returns:
        The ground truth (see :func:`ground_truth_detections`) and the predictions, in the frame of the original image.
    """
    with inference_context(model):
        mapper = without_pixels if isinstance(model, TiledModel) else MaskRCNNMapper(cfg, is_train=False)
        output = model([mapper(record)])[0]
    predictions = Detections.from_instances(output["instances"].to("cpu"))
    return ground_truth_detections(record), predictions[predictions.scores >= threshold]


def unique_names(files: Sequence[str]) -> list[str]:
    """Name image files for output: by their base names, or by as many folders as it takes to make them differ.

    Names differ on case-insensitive file systems too. Parts are joined by ``_``; where even whole paths are equal then,
    names begin with the image's position.

    >>> unique_names(["a/x.png", "b/x.png"])
    ['a_x.png', 'b_x.png']
    """
    parts = [Path(file).parts for file in files]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["_".join(part.strip("/\\:") for part in each[-depth:]) for each in parts]
        if len({name.lower() for name in names}) == len(names):
            return names
    return [f"{position:04d}_{each[-1]}" for position, each in enumerate(parts)]


def _draw_panels(
    image: np.ndarray, ground_truth: Detections, predictions: Detections, class_names: Sequence[str]
) -> list[np.ndarray]:
    """Draw the ground truth and the predictions on copies of ``image``; see :func:`_draw`."""
    outcomes, unmatched = compare(ground_truth, predictions)
    gt_colors = choose_colors(ground_truth.boxes, [None] * len(ground_truth))
    gt_tags = ["FN" if index in unmatched else "" for index in range(len(ground_truth))]
    colors = choose_colors(predictions.boxes, [None if gt is None else gt_colors[gt] for _, gt in outcomes])
    tags = ["" if outcome == "TP" else outcome for outcome, _ in outcomes]
    return [
        _draw(image, ground_truth, class_names, gt_colors, gt_tags),
        _draw(image, predictions, class_names, colors, tags),
    ]


def _draw(
    image: np.ndarray, detections: Detections, class_names: Sequence[str], colors: list[int], tags: list[str]
) -> np.ndarray:
    """Draw on a copy of ``image`` ((H, W, 3) uint8 BGR), enlarged by a whole factor if it is small."""
    scale = max(1, min(round(MIN_SIDE / min(image.shape[:2])), MAX_SIDE // max(image.shape[:2])))
    enlarged = image.repeat(scale, 0).repeat(scale, 1)
    masks = None
    if detections.masks is not None:
        crops = [detections.masks.crop(index) for index in range(len(detections))]
        masks = CropMasks(
            [Window(*(side * scale for side in window)) for window, _ in crops],
            [bitmap.repeat(scale, 0).repeat(scale, 1) for _, bitmap in crops],
            enlarged.shape[:2],
        )
    scaled = Detections(detections.boxes * scale, detections.scores, detections.classes, enlarged.shape[:2], masks)
    Annotator(class_names).draw(enlarged, scaled, colors=colors, tags=tags)
    return enlarged
