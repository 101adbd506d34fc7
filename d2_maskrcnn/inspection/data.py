"""The network's training data: augmented images, and statistics of a dataset against the anchors."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.data.anchor_fit import GOOD_IOU, anchor_shapes, input_scale, shape_iou
from d2_maskrcnn.data.coco.records import Record
from d2_maskrcnn.data.flaws.coco_table import CocoTable, index_in
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.observation import as_rgb
from d2_maskrcnn.inspection.records import available_records
from d2_maskrcnn.inspection.result import TOLERANCE
from d2_maskrcnn.inspection.statistics import histogram, quantiles
from d2_maskrcnn.structures.masks import mask_to_polygons
from d2_maskrcnn.visualization.figures import literal, new_figure, show_bars
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_points, draw_scene
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, BoxMode, Instances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 24


@dataclass
class DataFindings:
    """Statistics of a dataset; lengths are pixels of the network's input (resized, without random augmentation).

    Attributes:
        images, empty_images: number of images, and of those without objects.
        objects, crowds: number of annotated objects, and of crowd regions, which the rest leaves out.
        categories: name -> number of objects.
        image_sizes: ``WxH`` of the image files -> number of images.
        sqrt_areas: (n,) square root of each box's area.
        ratios: (n,) height / width of each box.
        objects_per_image: (images,) int64.
        best_anchor_iou: (n,) IoU of each box with the best anchor shape, both centered on the same point: the best that
            anchors can reach.
        anchors: level, size and ratio (height / width) of each anchor shape, and the number of boxes that it fits best.
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
    objects_per_image: np.ndarray
    best_anchor_iou: np.ndarray
    anchors: list[dict[str, Any]]

    def as_dict(self) -> dict[str, object]:
        """Return the numbers for JSON, arrays as quantiles."""
        numbers = {k: quantiles(v) if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {**numbers, "covered_by_anchors": self.covered}

    @property
    def covered(self) -> float | None:
        """Share of the boxes that an anchor shape fits with an IoU of ``GOOD_IOU`` or more; None without boxes."""
        return float((self.best_anchor_iou >= GOOD_IOU).mean()) if len(self.best_anchor_iou) else None


def inspect_data(cfg: CfgNode, dataset: str) -> DataFindings:
    """Compute the statistics of a registered dataset.

    Raises:
        UserError: the dataset is unknown or its files are missing.
    """
    records = available_records(dataset)
    if not records:
        raise UserError(f"the dataset {dataset} has no images on this machine: see datasets/README.md for its folder")
    objects = [(i, a) for i, r in enumerate(records) for a in r.get("annotations", []) if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)[2:] for _, a in objects]
    return _describe(
        cfg,
        dataset,
        np.array([(record["width"], record["height"]) for record in records]),
        np.array([index for index, _ in objects], dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 2),
        np.array([annotation["category_id"] for _, annotation in objects], dtype=np.int64),
        list(MetadataCatalog.get(dataset).get("thing_classes") or []),
        sum(len(record.get("annotations", [])) for record in records) - len(objects),
    )


def inspect_table(cfg: CfgNode, name: str, table: CocoTable) -> DataFindings:
    """Compute the statistics of a COCO JSON, leaving out annotations of unknown images or categories."""
    order = np.argsort(table.category_ids, kind="stable")
    classes = index_in(table.category_ids[order], table.category_of)
    with np.errstate(invalid="ignore"):
        usable = (table.image_index >= 0) & (classes >= 0) & (table.boxes[:, 2:] > 0).all(axis=1)
        usable &= np.isfinite(table.boxes).all(axis=1)
    rows = np.flatnonzero(usable & ~table.is_crowd)
    names = [str(table.categories[index]["name"]) for index in order.tolist()]
    sides, crowds = table.boxes[rows, 2:], int(table.is_crowd.sum())
    return _describe(cfg, name, table.sizes, table.image_index[rows], sides, classes[rows], names, crowds)


def _describe(
    cfg: CfgNode,
    name: str,
    sizes: np.ndarray,
    image_index: np.ndarray,
    sides: np.ndarray,
    classes: np.ndarray,
    names: list[str],
    crowds: int,
) -> DataFindings:
    """Compute the statistics of n objects.

    Args:
        sizes: (I, 2) width and height of the images in pixels.
        image_index: (n,) index of each object's image.
        sides: (n, 2) width and height of the boxes in pixels of the images.
        classes: (n,) indices into ``names``.
        crowds: number of crowd regions, which are not among the objects.
    """
    sides = np.maximum(sides * input_scale(cfg, sizes[image_index])[:, None], 1e-6)
    shapes, anchors = anchor_shapes(cfg)
    fit = shape_iou(sides, shapes)  # (n, anchors)
    best = np.bincount(fit.argmax(axis=1), minlength=len(anchors))
    for anchor, number in zip(anchors, best.tolist(), strict=True):
        anchor["boxes"] = number
    per_image, per_class = np.bincount(image_index, minlength=len(sizes)), np.bincount(classes, minlength=len(names))
    return DataFindings(
        name=name,
        images=len(sizes),
        empty_images=int((per_image == 0).sum()),
        objects=len(sides),
        crowds=crowds,
        categories={names[i] if i < len(names) else f"class {i}": int(n) for i, n in enumerate(per_class)},
        image_sizes=dict(Counter(f"{width}x{height}" for width, height in sizes.tolist()).most_common()),
        sqrt_areas=np.sqrt(sides.prod(axis=1)),
        ratios=sides[:, 1] / sides[:, 0],
        objects_per_image=per_image,
        best_anchor_iou=fit.max(axis=1),
        anchors=anchors,
    )


def augmented_scenes(cfg: CfgNode, dataset: str, count: int = 6, seed: int = 0) -> list[Scene]:
    """Show the first ``count`` images of a dataset as training augments them, with boxes and masks.

    The random generators of the augmentations are seeded with ``seed`` and restored.
    """
    mapper = MaskRCNNMapper(cfg, is_train=True)
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        samples = [mapper(record) for record in available_records(dataset)[:count]]
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
    names = list(MetadataCatalog.get(dataset).get("thing_classes") or [])
    return [_sample_scene(cfg, sample, names) for sample in samples]


def _sample_scene(cfg: CfgNode, sample: Record, names: list[str]) -> Scene:
    image = as_rgb(sample["image"], cfg.INPUT.FORMAT)
    instances: Instances = sample["instances"]
    classes = instances.gt_classes.tolist()
    texts = [names[c] if c < len(names) else f"class {c}" for c in classes]
    layers = []
    if instances.has("gt_masks"):
        polygons = _mask_polygons(instances.gt_masks)
        marks = [Mark(p, t, "", c) for p, t, c in zip(polygons, texts, classes, strict=True)]
        layers.append(Layer("masks", marks, filled=True))
    boxes = instances.gt_boxes.tensor.tolist()
    marks = [Mark([box_points(b)], t, t, c) for b, t, c in zip(boxes, texts, classes, strict=True)]
    layers.append(Layer("boxes", marks))
    title = f"{Path(sample['file_name']).name}: {image.shape[1]}x{image.shape[0]}"
    return Scene("augmented", title, image, (image.shape[0], image.shape[1]), layers, names)


def _mask_polygons(masks: Any) -> list[list[np.ndarray]]:
    if isinstance(masks, BitMasks):
        return [mask_to_polygons(mask.numpy(), tolerance=TOLERANCE) for mask in masks.tensor]
    return [[np.asarray(polygon).reshape(-1, 2) for polygon in polygons] for polygons in masks.polygons]


def draw_data(findings: DataFindings) -> "Figure":
    """Draw histograms of box sizes, aspect ratios and the best anchor IoU, and the number of objects per category."""
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
    ordered = sorted(findings.categories.items(), key=lambda item: -item[1])[:20][::-1]
    axes[3].barh([literal(name) for name, _ in ordered], [number for _, number in ordered])
    axes[3].set_title("objects per category", fontsize=8)
    axes[3].tick_params(labelsize=7)
    return figure


def draw_augmented(cfg: CfgNode, dataset: str, count: int = 4) -> "list[Figure]":
    """Draw the first ``count`` images of a dataset as training augments them, one figure each."""
    return [draw_scene(scene) for scene in augmented_scenes(cfg, dataset, count)]
