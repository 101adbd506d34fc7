"""Draw masks, boxes and labels into an image in place, touching only the pixels that they cover."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.masks import Window
from d2_maskrcnn.visualization.labels import LabelPainter
from d2_maskrcnn.visualization.palette import PALETTE, Color, ColorAssigner

MASK_ALPHA = 0.45
MIN_FONT_SIZE = 11
DASHED = (6, 4)  # length of a dash and of a gap, relative to the width of the line


class Annotator:
    """Draw detections into images; one instance serves a whole video, so that tracked objects keep their color.

    Args:
        class_names: name of each class; classes without a name are labeled by their number. A single class is named
            on one object only.
        alpha: opacity of masks, in [0, 1].
        masks, boxes, labels: what is drawn.

    Raises:
        ValueError: ``alpha`` is outside [0, 1].
    """

    def __init__(
        self,
        class_names: Sequence[str] = (),
        *,
        alpha: float = MASK_ALPHA,
        masks: bool = True,
        boxes: bool = True,
        labels: bool = True,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        self.class_names = list(class_names)
        self.masks, self.boxes, self.labels = masks, boxes, labels
        self.alpha = alpha
        self._assigner = ColorAssigner()
        self._painter: LabelPainter | None = None

    def draw(
        self,
        image: np.ndarray,
        detections: Detections,
        shown_scores: np.ndarray | None = None,
        *,
        colors: Sequence[int] | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        """Draw detections into ``image``, small objects over large ones.

        Args:
            image: (H, W, 3) uint8, BGR, contiguous; changed in place.
            detections: in pixels of ``image``.
            shown_scores: (N,) scores for the labels in place of ``detections.scores``, such as averages over a track.
            colors: N indices into :data:`~d2_maskrcnn.visualization.palette.PALETTE`; by default, neighbors get
                different colors and tracks keep theirs.
            tags: N texts such as ``FP`` that labels begin with; boxes with a tag are dashed. "" for no tag.

        Raises:
            ValueError: the image is not uint8 or not of the detections' size.
        """
        if image.dtype != np.uint8 or image.shape != (*detections.image_size, 3):
            raise ValueError(
                f"expected an image of {detections.image_size} and 3 uint8 channels, got {image.shape} {image.dtype}"
            )
        if colors is None:
            colors = self._assigner.assign(detections.boxes, detections.track_ids)
        tags = [""] * len(detections) if tags is None else tags
        rgb = [PALETTE[index] for index in colors]
        areas = np.prod(detections.boxes[:, 2:] - detections.boxes[:, :2], axis=1)
        thickness = line_thickness(detections.image_size)
        for index in np.argsort(-areas, kind="stable").tolist():
            if self.masks and detections.masks is not None:
                window, pixels = detections.masks.crop(index)
                draw_mask(image, window, pixels, rgb[index], self.alpha, thickness)
            if self.boxes:
                draw_box(image, detections.boxes[index], rgb[index], thickness, dashed=bool(tags[index]))
        if self.labels:
            self._draw_labels(image, detections, rgb, detections.scores if shown_scores is None else shown_scores, tags)

    def _draw_labels(
        self, image: np.ndarray, detections: Detections, colors: list[Color], scores: np.ndarray, tags: Sequence[str]
    ) -> None:
        size = font_size(detections.image_size)
        if self._painter is None or self._painter.font_size != size:
            self._painter = LabelPainter(size)
        ids = None if detections.track_ids is None else detections.track_ids.tolist()
        # Labels with a tag are placed first, then those of the earliest tracks, which are the same in all frames, or of
        # the highest scores.
        ranks = -scores if ids is None else ids
        order = np.lexsort((ranks, np.array([not tag for tag in tags], dtype=bool))).tolist()
        texts = []
        for number, i in enumerate(order):
            cls = None if number and len(self.class_names) == 1 else int(detections.classes[i])
            text = label_text(self.class_names, cls, float(scores[i]), ids[i] if ids else None)
            texts.append(f"{tags[i]} {text}".strip())
        self._painter.draw(image, texts, detections.boxes[order], [colors[i] for i in order])


def draw_mask(
    image: np.ndarray,
    window: Window,
    pixels: np.ndarray,
    color: Color,
    alpha: float = MASK_ALPHA,
    thickness: int = 1,
) -> None:
    """Fill a mask and draw its contours, in place.

    Args:
        image: (H, W, 3) uint8, BGR.
        window, pixels: the mask's bitmap and its place, as returned by :meth:`Masks.crop`.
        color: RGB.
        alpha: opacity of the fill, in [0, 1].
        thickness: width of the contours in pixels.
    """
    if pixels.size == 0:
        return
    region = image[window.slices]
    tinted = cv2.convertScaleAbs(region, alpha=1 - alpha)
    rows = tinted.reshape(len(tinted), -1)  # (h, 3w): adding whole rows is much faster than adding a triple per pixel
    rows += np.tile((np.array(color[::-1]) * alpha).astype(np.uint8), pixels.shape[1])  # truncated, so never above 255
    cv2.copyTo(tinted, pixels, region)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(image, contours, -1, color[::-1], thickness, cv2.LINE_8, offset=(window.x0, window.y0))


def draw_box(image: np.ndarray, box: np.ndarray, color: Color, thickness: int = 1, dashed: bool = False) -> None:
    """Draw an XYXY box, clipped to the (H, W, 3) uint8 BGR image, in place."""
    height, width = image.shape[:2]
    x0, y0 = (max(int(v), 0) for v in np.floor(box[:2]))
    x1, y1 = (min(int(v), side) - 1 for v, side in zip(np.ceil(box[2:]), (width, height), strict=True))
    if x0 > x1 or y0 > y1:
        return
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if dashed:
        cv2.polylines(image, dashes(corners, *DASHED, thickness), False, color[::-1], thickness)
    else:
        cv2.rectangle(image, (x0, y0), (x1, y1), color[::-1], thickness)


def dashes(polygon: np.ndarray, on: int, off: int, thickness: int = 1) -> list[np.ndarray]:
    """Cut the edges of a closed polygon into dashes.

    Args:
        polygon: (n, 2) x, y in pixels.
        on, off: length of a dash and of a gap, relative to ``thickness``.

    Returns:
        Lines (2, 2) int32.
    """
    lines = []
    for start, end in zip(polygon.astype(float), np.roll(polygon, -1, axis=0).astype(float), strict=True):
        length = float(np.linalg.norm(end - start))
        begins = np.arange(0, length, thickness * (on + off))[:, None]
        ends = np.minimum(begins + thickness * on, length)
        shares = np.stack([begins, ends], axis=1) / max(length, 1.0)  # (m, 2, 1) of the edge
        lines += list(np.round(start + shares * (end - start)).astype(np.int32))
    return lines


def line_thickness(image_size: tuple[int, int]) -> int:
    """Return the line width in pixels for an image of (height, width): 1 up to VGA, 2 at 720p, 6 at 4K."""
    return max(1, round((image_size[0] * image_size[1]) ** 0.5 / 500))


def font_size(image_size: tuple[int, int]) -> int:
    """Return the height of text in pixels for an image of (height, width): 17 at 720p, 52 at 4K."""
    return max(MIN_FONT_SIZE, round((image_size[0] * image_size[1]) ** 0.5 * 0.018))


def label_text(names: Sequence[str], cls: int | None, score: float | None = None, track_id: int | None = None) -> str:
    """Format a label, such as ``#7 person 98%``, from those of track id, class and score that are known.

    The score of ground truth is NaN, which is left out.
    """
    parts = [] if track_id is None else [f"#{track_id}"]
    if cls is not None:
        parts.append(names[cls] if 0 <= cls < len(names) else f"class {cls}")
    if score is not None and not math.isnan(score):
        parts.append(f"{score:.0%}")
    return " ".join(parts)
