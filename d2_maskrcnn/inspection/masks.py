"""The mask of every detection, from 28x28 probabilities to pixels of the image, beside the ground truth.

(He et al. 2017, arXiv:1703.06870, section 3.) Windows and masks are in pixels of the image file.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from d2_maskrcnn.evaluation.outcomes import MATCH_IOU
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.inspection.result import overlap_matrix
from d2_maskrcnn.structures.lazy_masks import BoxMasks
from d2_maskrcnn.structures.masks import Window
from d2_maskrcnn.visualization.figures import literal, new_figure
from d2_maskrcnn.visualization.palette import GREEN, GROUND_TRUTH, Color
from detectron2.structures import Instances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE, GAP = 112, 2  # side of a tile, and half the line between two tiles, in pixels
STEPS = ("image", "28x28", "resized", "≥ 0.5", "placed", "ground truth")
# IoU below which a detection is on background rather than on an object (TIDE, arXiv:2008.08115, section 2.2).
BACKGROUND_IOU = 0.1
_TINT = 0.6  # opacity of masks
_BLANK = 128


@dataclass
class MaskFinding:
    """One detection's mask.

    Attributes:
        detection: index of the detection.
        class_index, class_name, score: of the detection.
        pixels: size of the final mask.
        window: the part of the image that the mask is resized to.
        probabilities: (28, 28) in [0, 1] inside the box.
        resized: (h, w) probabilities at the window's pixels.
        placed: (h, w) bool, the final mask in the window.
        gt_index, gt_class: the ground truth object that the mask belongs to, or None: the best of its class if its IoU
            is ``MATCH_IOU`` or more, else the best of all classes if its IoU is ``BACKGROUND_IOU`` or more.
        iou: with this object.
        gt_mask: (h, w) bool of this object in the window.
    """

    detection: int
    class_index: int
    class_name: str
    score: float
    pixels: int
    window: Window
    probabilities: np.ndarray
    resized: np.ndarray
    placed: np.ndarray
    gt_index: int | None = None
    gt_class: str | None = None
    iou: float | None = None
    gt_mask: np.ndarray | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the numbers for JSON."""
        numbers = {k: v for k, v in vars(self).items() if not isinstance(v, np.ndarray)}
        values = self.probabilities
        uncertain = float(((values > 0.1) & (values < 0.9)).mean())
        return {**numbers, "mean_probability": float(values.mean()), "uncertain": uncertain}

    def comparison(self) -> str:
        """Compare the mask with the ground truth in words."""
        if self.iou is None:
            return f"on no ground truth object (IoU below {BACKGROUND_IOU:g})"
        other = "" if self.gt_class == self.class_name else f" of another class, {self.gt_class}"
        return f"IoU {self.iou:.2f} with the ground truth{other}"


@dataclass
class MaskTarget:
    """The mask target of one region of training: (28, 28) bool inside ``box`` (XYXY in the network's input image)."""

    box: list[float]
    class_name: str
    mask: np.ndarray


def inspect_masks(observation: Observation, limit: int | None = None) -> list[MaskFinding]:
    """Follow the masks of the best ``limit`` detections (None: all); empty if the model predicts no masks."""
    results = observation.intermediates.results[0].to("cpu")
    masks = getattr(results, "box_masks", None)
    if masks is None:
        return []
    findings = [_finding(observation, results, masks, index) for index in range(len(results))[:limit]]
    ground_truth = observation.ground_truth
    if ground_truth is None or len(ground_truth) == 0:
        return findings
    overlaps = np.where(ground_truth.crowd, 0, overlap_matrix(results, ground_truth))  # (n, G)
    for finding, ious in zip(findings, overlaps, strict=False):
        own = np.where(ground_truth.classes == finding.class_index, ious, 0)
        best = int((own if own.max() >= MATCH_IOU else ious).argmax())
        if ious[best] >= BACKGROUND_IOU:
            finding.gt_index, finding.iou = best, float(ious[best])
            finding.gt_class = observation.class_name(int(ground_truth.classes[best]))
            finding.gt_mask = ground_truth.masks[best][finding.window.slices]
    return findings


def _finding(observation: Observation, results: Instances, masks: BoxMasks, index: int) -> MaskFinding:
    window, resized = masks.probability_crop(index)
    placed = masks.crop(index)[1].astype(bool)
    class_index = int(results.pred_classes[index])
    return MaskFinding(
        detection=index,
        class_index=class_index,
        class_name=observation.class_name(class_index),
        score=float(results.scores[index]),
        pixels=int(placed.sum()),
        window=window,
        probabilities=masks.probabilities[index],
        resized=resized,
        placed=placed,
    )


def mask_targets(observation: Observation, limit: int = 16) -> list[MaskTarget]:
    """Return the mask targets of the first ``limit`` foreground regions of training; empty without ground truth."""
    training = observation.training
    if training is None or training.mask_targets is None or len(training.mask_targets) == 0:
        return []
    rois = training.rois[0]
    background = observation.intermediates.class_probs[0].shape[1] - 1
    foreground = rois[rois.gt_classes < background]
    return [
        MaskTarget([round(v, 2) for v in box], observation.class_name(cls), target)
        for box, cls, target in zip(
            foreground.proposal_boxes.tensor[:limit].tolist(),
            foreground.gt_classes[:limit].tolist(),
            training.mask_targets[:limit].cpu().numpy(),
            strict=True,
        )
    ]


def strip(finding: MaskFinding, image: np.ndarray) -> np.ndarray:
    """Draw the tiles that ``STEPS`` names side by side: (TILE, 6 * TILE, 3) uint8 RGB; gray where there is no mask.

    Args:
        image: (H, W, 3) uint8 RGB, the image file.
    """
    crop = _crop_of(image, finding.window)
    blank = np.full((TILE, TILE, 3), _BLANK, np.uint8)
    tiles = [
        crop,
        _tile(_heat(finding.probabilities), cv2.INTER_NEAREST),
        _tile(_heat(finding.resized), cv2.INTER_LINEAR),
        _overlay(crop, finding.placed, GREEN),
        _in_image(finding, image),
        blank if finding.gt_mask is None else _overlay(crop, finding.gt_mask, GROUND_TRUTH),
    ]
    joined = np.concatenate(tiles, axis=1)
    for place in range(TILE, joined.shape[1], TILE):
        joined[:, place - GAP : place + GAP] = _BLANK
    return joined


def target_pair(target: MaskTarget, image: np.ndarray) -> np.ndarray:
    """Draw a region of the network's input image beside its mask target: (TILE, 2 * TILE, 3) uint8 RGB."""
    x0, y0, x1, y1 = target.box
    window = Window(int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1)))
    crop = _crop_of(image, window)
    mask = np.repeat(target.mask.astype(np.uint8)[..., None] * 255, 3, axis=2)
    return np.concatenate([crop, _tile(mask, cv2.INTER_NEAREST)], axis=1)


def _crop_of(image: np.ndarray, window: Window) -> np.ndarray:
    """Cut a window out of an image, at least one pixel, as a tile."""
    x0, y0, x1, y1 = window
    return _tile(image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)], cv2.INTER_LINEAR)


def _in_image(finding: MaskFinding, image: np.ndarray) -> np.ndarray:
    """Draw a tile of the whole image with the mask in place and its window."""
    frame = image.shape[:2]
    scale = TILE / max(frame)
    height, width = (max(round(side * scale), 1) for side in frame)
    small = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    whole = np.zeros(frame, np.float32)
    whole[finding.window.slices] = finding.placed
    share = _TINT * cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)[..., None]
    small = (small * (1 - share) + np.array(GREEN) * share).astype(np.uint8)
    x0, y0, x1, y1 = (round(side * scale) for side in finding.window)
    cv2.rectangle(small, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), (255, 255, 255), 1)
    tile = np.full((TILE, TILE, 3), _BLANK, np.uint8)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile


def _tile(image: np.ndarray, interpolation: int) -> np.ndarray:
    if 0 in image.shape:
        return np.full((TILE, TILE, 3), _BLANK, np.uint8)
    return cv2.resize(np.ascontiguousarray(image), (TILE, TILE), interpolation=interpolation)


def _heat(values: np.ndarray) -> np.ndarray:
    """Draw probabilities (h, w) in [0, 1] as a heat map (h, w, 3) uint8 RGB."""
    if values.size == 0:
        return np.zeros((0, 0, 3), np.uint8)
    gray = (np.nan_to_num(values) * 255).round().astype(np.uint8)
    return cv2.applyColorMap(gray, cv2.COLORMAP_VIRIDIS)[..., ::-1]


def _overlay(tile: np.ndarray, mask: np.ndarray, color: Color) -> np.ndarray:
    """Tint the mask's pixels of a tile."""
    if mask.size == 0:
        return tile
    inside = cv2.resize(mask.astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST).astype(bool)
    tinted = tile.copy()
    tinted[inside] = ((1 - _TINT) * tile[inside] + _TINT * np.array(color)).astype(np.uint8)
    return tinted


def draw_masks(observation: Observation, count: int = 6) -> "dict[str, Figure]":
    """Draw the figures ``masks`` of the best ``count`` detections, and ``targets`` with ground truth."""
    figures = {}
    findings = inspect_masks(observation, count)
    if findings:
        figure, axes = new_figure(len(findings), 1, (8.0, 1.7 * len(findings)))
        for panel, finding in zip(axes, findings, strict=True):
            known = "" if observation.ground_truth is None else f", {finding.comparison()}"
            panel.imshow(strip(finding, observation.original))
            panel.set_title(literal(f"{finding.class_name} {finding.score:.2f}{known}"), fontsize=8)
            panel.set_xticks([TILE * (i + 0.5) for i in range(len(STEPS))], STEPS, fontsize=7)
            panel.set_yticks([])
        figures["masks"] = figure
    targets = mask_targets(observation)
    if targets:
        figure, axes = new_figure(-(-len(targets) // 4), 4, (8.0, 1.3 * -(-len(targets) // 4)))
        for panel in axes:
            panel.set_axis_off()
        for panel, target in zip(axes, targets, strict=False):
            panel.imshow(target_pair(target, observation.image))
            panel.set_title(literal(target.class_name), fontsize=7)
        figures["targets"] = figure
    return figures
