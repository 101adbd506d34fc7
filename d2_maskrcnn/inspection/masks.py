"""Stage 3: every detection's mask, from 28x28 probabilities to pixels of the image, beside the annotation.

(He et al. 2017, arXiv:1703.06870, section 3.) Windows and masks are in the output's frame: pixels of the image file.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.inspection.result import overlap_matrix
from d2_maskrcnn.structures.lazy_masks import BoxMasks
from d2_maskrcnn.visualization.figures import new_figure
from d2_maskrcnn.visualization.palette import GREEN, GROUND_TRUTH
from detectron2.structures import Instances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE, GAP = 112, 2  # pixels: the side of a tile of a mask's strip, and half the line between two of them
STEPS = ("image", "28x28", "resized", "≥ 0.5", "placed", "annotated")
_PROBABILITY = cv2.COLORMAP_VIRIDIS


@dataclass
class MaskFinding:
    """One detection's mask.

    probabilities: (28, 28) in [0, 1] inside the box. window: x0, y0, x1, y1, whole pixels, in the image. resized:
    the same probabilities at the window's pixels. placed: (h, w) bool, the final mask there. pixels: set in the whole
    image. truth: index of the annotated object of the same class that it overlaps most, or None; iou with it.
    annotated: (h, w) bool of that object in the window.
    """

    detection: int
    class_index: int
    class_name: str
    score: float
    pixels: int
    window: tuple[int, int, int, int]
    probabilities: np.ndarray
    resized: np.ndarray
    placed: np.ndarray
    truth: int | None = None
    iou: float | None = None
    annotated: np.ndarray | None = None

    def as_dict(self) -> dict[str, object]:
        """The numbers alone."""
        numbers = {k: v for k, v in vars(self).items() if not isinstance(v, np.ndarray)}
        values = self.probabilities
        return {
            **numbers,
            "mean_probability": float(values.mean()),
            "unsure": float(((values > 0.1) & (values < 0.9)).mean()),
        }


@dataclass
class MaskTarget:
    """What training would ask of one region's mask: (28, 28) bool inside ``box`` (network's frame)."""

    box: list[float]
    class_name: str
    mask: np.ndarray


def inspect_masks(observation: Observation, limit: int | None = None) -> list[MaskFinding]:
    """The masks of the best ``limit`` detections (all if None); none where the model has no masks."""
    results = observation.intermediates.results[0].to("cpu")
    masks = getattr(results, "box_masks", None)
    if masks is None:
        return []
    truth = observation.truth
    overlaps = None if truth is None else overlap_matrix(results, truth)
    findings = []
    for index in range(len(results) if limit is None else min(limit, len(results))):
        finding = _finding(observation, results, masks, index)
        if truth is not None and overlaps is not None:
            same = [g for g in range(len(truth)) if truth.classes[g] == finding.class_index and not truth.crowd[g]]
            best = max(same, key=lambda g: overlaps[index, g], default=None)
            if best is not None and overlaps[index, best] > 0:
                finding.truth, finding.iou = best, float(overlaps[index, best])
                finding.annotated = _cut(truth.masks[best], finding.window)
        findings.append(finding)
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
        window=(window.x0, window.y0, window.x1, window.y1),
        probabilities=masks.probabilities[index],
        resized=resized,
        placed=placed,
    )


def _cut(mask: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = window
    return mask[y0:y1, x0:x1]


def mask_targets(observation: Observation, limit: int = 16) -> list[MaskTarget]:
    """The mask targets of the first ``limit`` foreground regions of training; none without annotations."""
    training = observation.training
    if training is None or training.mask_targets is None or len(training.mask_targets) == 0:
        return []
    rois = training.rois[0]
    background = observation.intermediates.class_probs[0].shape[1] - 1
    foreground = rois[rois.gt_classes < background]
    targets = training.mask_targets.cpu().numpy()
    return [
        MaskTarget(
            [round(v, 2) for v in foreground.proposal_boxes.tensor[i].tolist()],
            observation.class_name(int(foreground.gt_classes[i])),
            targets[i],
        )
        for i in range(min(limit, len(targets)))
    ]


def strip(finding: MaskFinding, image: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """(TILE, 6 * TILE, 3) uint8: the tiles that ``STEPS`` names, the annotation grey where there is none.

    Args:
        image: (H, W, 3) uint8 RGB, covering ``frame`` (height, width) of the output.
    """
    crop = _crop_of(image, frame, finding.window)
    blank = np.full((TILE, TILE, 3), 128, np.uint8)
    annotated = blank if finding.annotated is None else _overlay(crop, finding.annotated, GROUND_TRUTH)
    tiles = [
        crop,
        _tile(_heat(finding.probabilities), cv2.INTER_NEAREST),
        _tile(_heat(finding.resized), cv2.INTER_LINEAR),
        _overlay(crop, finding.placed, GREEN),
        _in_image(finding, image, frame),
        annotated,
    ]
    joined = np.concatenate(tiles, axis=1)
    for place in range(TILE, joined.shape[1], TILE):
        joined[:, place - GAP : place + GAP] = 128
    return joined


def target_pair(target: MaskTarget, image: np.ndarray) -> np.ndarray:
    """(TILE, 2 * TILE, 3) uint8: the region, cut out of the image in the network's frame, and its mask target."""
    crop = _crop_of(image, (image.shape[0], image.shape[1]), _whole(target.box))
    mask = np.repeat(target.mask.astype(np.uint8)[..., None] * 255, 3, axis=2)
    return np.concatenate([crop, _tile(mask, cv2.INTER_NEAREST)], axis=1)


def _whole(box: list[float]) -> tuple[int, int, int, int]:
    return int(box[0]), int(box[1]), int(np.ceil(box[2])), int(np.ceil(box[3]))


def target_strip(targets: list[MaskTarget], columns: int = 8, tile: int = 64) -> np.ndarray:
    """(rows * tile, columns * tile, 3) uint8: mask targets, white on black."""
    columns = max(min(columns, len(targets)), 1)
    rows = -(-len(targets) // columns)
    grid = np.full((rows * tile, columns * tile, 3), 128, np.uint8)
    for index, target in enumerate(targets):
        y, x = index // columns * tile, index % columns * tile
        small = cv2.resize(target.mask.astype(np.uint8) * 255, (tile - 2, tile - 2), interpolation=cv2.INTER_NEAREST)
        grid[y + 1 : y + tile - 1, x + 1 : x + tile - 1] = small[..., None]
    return grid


def _crop_of(image: np.ndarray, frame: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """The window of the output's frame, cut out of the image, as a tile."""
    scale_y, scale_x = image.shape[0] / frame[0], image.shape[1] / frame[1]
    x0, x1 = int(window[0] * scale_x), max(int(np.ceil(window[2] * scale_x)), int(window[0] * scale_x) + 1)
    y0, y1 = int(window[1] * scale_y), max(int(np.ceil(window[3] * scale_y)), int(window[1] * scale_y) + 1)
    return _tile(image[y0:y1, x0:x1], cv2.INTER_LINEAR)


def _in_image(finding: MaskFinding, image: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """A tile of the whole image with the mask in its place and a box around it, on grey."""
    scale = TILE / max(frame)
    height, width = (max(round(side * scale), 1) for side in frame)
    small = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    whole = np.zeros(frame, np.float32)
    whole[finding.window[1] : finding.window[3], finding.window[0] : finding.window[2]] = finding.placed
    share = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)[..., None]
    small = (small * (1 - 0.75 * share) + np.array(GREEN) * 0.75 * share).astype(np.uint8)
    x0, y0, x1, y1 = (round(side * scale) for side in finding.window)
    cv2.rectangle(small, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), (255, 255, 255), 1)
    tile = np.full((TILE, TILE, 3), 128, np.uint8)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile


def _tile(image: np.ndarray, interpolation: int) -> np.ndarray:
    if 0 in image.shape:
        return np.full((TILE, TILE, 3), 128, np.uint8)
    return cv2.resize(np.ascontiguousarray(image), (TILE, TILE), interpolation=interpolation)


def _heat(values: np.ndarray) -> np.ndarray:
    """Probabilities (h, w) in [0, 1] as (h, w, 3) uint8 RGB."""
    if values.size == 0:
        return np.zeros((0, 0, 3), np.uint8)
    return cv2.applyColorMap((np.nan_to_num(values) * 255).round().astype(np.uint8), _PROBABILITY)[..., ::-1]


def _overlay(tile: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The tile with the mask's pixels tinted."""
    if mask.size == 0:
        return tile
    inside = cv2.resize(mask.astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST).astype(bool)
    tinted = tile.copy()
    tinted[inside] = (0.4 * tile[inside] + 0.6 * np.array(colour)).astype(np.uint8)
    return tinted


def draw_masks(observation: Observation, count: int = 6) -> "dict[str, Figure]":
    """Figures of this stage: ``masks`` of the best ``count`` detections, ``targets`` where there are annotations."""
    figures = {}
    findings = inspect_masks(observation, count)
    if findings:
        figures["masks"] = _draw_findings(observation, findings)
    targets = mask_targets(observation)
    if targets:
        rows = -(-len(targets) // 8)
        figure, axes = new_figure(1, 1, (8.0, rows + 0.5))
        axes[0].imshow(target_strip(targets), interpolation="nearest")
        axes[0].set_axis_off()
        axes[0].set_title("Mask targets of training, 28x28, inside each region", fontsize=9)
        figures["targets"] = figure
    return figures


def _draw_findings(observation: Observation, findings: list[MaskFinding]) -> "Figure":
    figure, axes = new_figure(len(findings), len(STEPS), (9.0, 1.7 * len(findings)))
    for row, finding in enumerate(findings):
        crop = _crop_of(observation.image, observation.output_size, finding.window)
        whole = _in_image(finding, observation.image, observation.output_size)
        shown = [crop, finding.probabilities, finding.resized, finding.placed, whole, finding.annotated]
        label = f"{finding.class_name} {finding.score:.2f}"
        iou = "no annotation" if finding.iou is None else f"annotated, IoU {finding.iou:.2f}"
        titles = [label, *STEPS[1:5], iou]
        for axis, image, title in zip(axes[len(STEPS) * row :][: len(STEPS)], shown, titles, strict=True):
            axis.set_axis_off()
            axis.set_title(title, fontsize=7)
            if image is not None and image.size:
                axis.imshow(image, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    return figure
