"""What the network is fed: augmented images, and the statistics of a dataset against the anchors."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.ground_truth import Record, dataset_records
from d2_maskrcnn.inspection.result import TOLERANCE
from d2_maskrcnn.inspection.statistics import histogram
from d2_maskrcnn.modeling.rpn.anchor_generator import cell_anchors
from d2_maskrcnn.structures.masks import mask_to_polygons
from d2_maskrcnn.visualization.figures import new_figure, show_bars
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_points, draw_scene
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.structures import BitMasks, BoxMode, Instances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 24
GOOD_IOU = 0.5


@dataclass
class DataFindings:
    """Statistics of a dataset; sizes in pixels of the network's input (after resizing, without random augmentation).

    image_sizes: how many images have a size, as in the files. sqrt_areas and ratios (height / width): one value for
    each annotated box, crowds left out. best_anchor_iou: of each box with the anchor shape that fits best, both
    centred on the same point: what the anchors could reach at best.
    """

    name: str
    images: int
    empty_images: int
    objects: int
    crowds: int
    categories: dict[str, int]
    image_sizes: dict[str, int]
    sqrt_areas: np.ndarray
    ratios: np.ndarray
    best_anchor_iou: np.ndarray
    anchors: list[dict[str, Any]]

    def as_dict(self) -> dict[str, object]:
        """The numbers, arrays as quantiles."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in vars(self).items() if name not in arrays}
        return {
            **rest,
            **{name: quantiles(value) for name, value in arrays.items()},
            "covered_by_anchors": self.covered,
        }

    @property
    def covered(self) -> float | None:
        """Share of the boxes that some anchor shape fits with an IoU of at least ``GOOD_IOU``."""
        return float((self.best_anchor_iou >= GOOD_IOU).mean()) if len(self.best_anchor_iou) else None


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Minimum, quartiles, maximum and mean; empty for no values."""
    if len(values) == 0:
        return {}
    names = ("min", "q25", "median", "q75", "max")
    found = {name: float(v) for name, v in zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), strict=True)}
    return {**found, "mean": float(values.mean())}


def inspect_data(cfg: CfgNode, dataset: str) -> DataFindings:
    """Statistics of a registered dataset.

    Raises:
        UserError: the dataset is unknown or its files are not there.
    """
    records = dataset_records(dataset)
    if not records:
        raise UserError(
            f"The dataset {dataset} has no images on this machine: see datasets/README.md for where data goes"
        )
    names = list(MetadataCatalog.get(dataset).get("thing_classes") or [])
    boxes, scales, classes, crowds, empty = [], [], [], 0, 0
    sizes: dict[str, int] = {}
    for record in records:
        size = f"{record['width']}x{record['height']}"
        sizes[size] = sizes.get(size, 0) + 1
        scale = _scale(cfg, record)
        objects = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
        crowds += len(record.get("annotations", [])) - len(objects)
        empty += not objects
        for annotation in objects:
            boxes.append(BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)[2:])
            scales.append(scale)
            classes.append(annotation["category_id"])
    sides = np.asarray(boxes, dtype=float).reshape(-1, 2) * np.asarray(scales, dtype=float).reshape(-1, 1)  # (n, 2)
    sides = np.maximum(sides, 1e-6)
    shapes, anchors = _anchor_shapes(cfg)
    fit = shape_iou(sides, shapes)
    best = fit.argmax(axis=1) if len(sides) else np.zeros(0, int)
    for index, anchor in enumerate(anchors):
        anchor["boxes"] = int((best == index).sum())
    counts = np.bincount(np.asarray(classes, dtype=int), minlength=len(names))
    return DataFindings(
        name=dataset,
        images=len(records),
        empty_images=empty,
        objects=len(boxes),
        crowds=crowds,
        categories={names[i] if i < len(names) else f"class {i}": int(n) for i, n in enumerate(counts)},
        image_sizes=dict(sorted(sizes.items(), key=lambda item: -item[1])),
        sqrt_areas=np.sqrt(sides.prod(axis=1)),
        ratios=sides[:, 1] / sides[:, 0],
        best_anchor_iou=fit.max(axis=1) if len(sides) else np.zeros(0),
        anchors=anchors,
    )


def _scale(cfg: CfgNode, record: Record) -> float:
    """By how much an image is enlarged in testing (``INPUT.MIN_SIZE_TEST``, ``MAX_SIZE_TEST``)."""
    short, long = sorted((record["height"], record["width"]))
    if cfg.INPUT.MIN_SIZE_TEST == 0:
        return 1.0
    return min(cfg.INPUT.MIN_SIZE_TEST / short, cfg.INPUT.MAX_SIZE_TEST / long)


def _anchor_shapes(cfg: CfgNode) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(a, 2) width and height of every anchor of all levels, and what each is."""
    node, names = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RPN.IN_FEATURES
    shapes, anchors = [], []
    for level, name in enumerate(names):
        sizes = node.SIZES[level if len(node.SIZES) > 1 else 0]
        ratios = node.ASPECT_RATIOS[level if len(node.ASPECT_RATIOS) > 1 else 0]
        for box, (size, ratio) in zip(
            cell_anchors(sizes, ratios), [(s, r) for s in sizes for r in ratios], strict=True
        ):
            shapes.append((box[2:] - box[:2]).tolist())
            anchors.append({"level": name, "size": size, "ratio": ratio})
    return np.asarray(shapes), anchors


def shape_iou(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """(n, a) IoU of boxes and anchors of given width and height, (n, 2) and (a, 2), centred on the same point."""
    common = np.minimum(sides[:, None], shapes[None]).prod(axis=2)
    return common / (sides.prod(axis=1)[:, None] + shapes.prod(axis=1)[None] - common)


def augmented_scenes(cfg: CfgNode, dataset: str, count: int = 6, seed: int = 0) -> list[Scene]:
    """The first ``count`` images of a dataset as training gets them, with boxes and masks.

    The generators of the augmentations are seeded by ``seed`` and left as they were.
    """
    mapper = MaskRCNNMapper(cfg, is_train=True)
    names = MetadataCatalog.get(dataset).get("thing_classes") or []
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        samples = [mapper(record) for record in dataset_records(dataset)[:count]]
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
    return [_sample_scene(cfg, sample, names) for sample in samples]


def _sample_scene(cfg: CfgNode, sample: Record, names: Sequence[str]) -> Scene:
    pixels = sample["image"].permute(1, 2, 0).numpy()
    image = np.asarray(detection_utils.convert_image_to_rgb(pixels, cfg.INPUT.FORMAT), dtype=np.uint8)
    instances: Instances = sample["instances"]
    classes = instances.gt_classes.tolist()
    texts = [names[c] if c < len(names) else f"class {c}" for c in classes]
    layers = []
    if instances.has("gt_masks"):
        shapes = _mask_outlines(instances.gt_masks)
        layers.append(
            Layer("masks", [Mark(s, t, "", c) for s, t, c in zip(shapes, texts, classes, strict=True)], filled=True)
        )
    boxes = instances.gt_boxes.tensor.tolist()
    layers.append(
        Layer("boxes", [Mark([box_points(b)], t, t, c) for b, t, c in zip(boxes, texts, classes, strict=True)])
    )
    title = f"{str(sample['file_name']).rsplit('/', 1)[-1]}: {image.shape[1]}x{image.shape[0]}"
    return Scene("augmented", title, image, (image.shape[0], image.shape[1]), layers, names)


def _mask_outlines(masks: Any) -> list[list[np.ndarray]]:
    if isinstance(masks, BitMasks):
        return [mask_to_polygons(mask.numpy(), tolerance=TOLERANCE) for mask in torch.as_tensor(masks.tensor)]
    return [[np.asarray(polygon).reshape(-1, 2) for polygon in polygons] for polygons in masks.polygons]


def draw_data(findings: DataFindings) -> "Figure":
    """Histograms of box sizes and aspect ratios, what the anchors reach, and the categories."""
    figure, axes = new_figure(2, 2, (10.0, 6.5))
    panels = [
        (findings.sqrt_areas, "square root of box area, pixels of the network's input"),
        (np.log2(findings.ratios), "log2 of height / width"),
        (findings.best_anchor_iou, "IoU with the best anchor shape"),
    ]
    for axis, (values, title) in zip(axes, panels, strict=False):
        show_bars(axis, *histogram(values, BINS), title)
    for size in sorted({anchor["size"] for anchor in findings.anchors}):
        axes[0].axvline(size, color="C1", linestyle="--", linewidth=1)
    for ratio in sorted({anchor["ratio"] for anchor in findings.anchors}):
        axes[1].axvline(np.log2(ratio), color="C1", linestyle="--", linewidth=1)
    ordered = sorted(findings.categories.items(), key=lambda item: -item[1])[:20]
    axes[3].barh([name for name, _ in ordered][::-1], [number for _, number in ordered][::-1])
    axes[3].set_title("objects of each category", fontsize=8)
    axes[3].tick_params(labelsize=7)
    return figure


def draw_augmented(cfg: CfgNode, dataset: str, count: int = 4) -> "list[Figure]":
    """One figure for each image as training gets it."""
    return [draw_scene(scene) for scene in augmented_scenes(cfg, dataset, count)]
