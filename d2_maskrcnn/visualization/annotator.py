"""Masks, boxes and labels drawn into an image, in place and only where they are."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.masks import Window
from d2_maskrcnn.visualization.labels import LabelPainter
from d2_maskrcnn.visualization.palette import PALETTE, ColourBook

MASK_ALPHA = 0.45
MIN_FONT_SIZE = 11


class Annotator:
    """Draws detections; made once for a video, so that colours stay with tracks.

    Args:
        class_names: name of each class; classes beyond it are shown as numbers.
        alpha: how much of a mask's colour covers the image, in [0, 1].
        masks, boxes, labels: what is drawn.
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
        self.colour_book = ColourBook()
        self.alpha = alpha
        self._painter: LabelPainter | None = None

    def draw(self, image: np.ndarray, found: Detections, shown_scores: np.ndarray | None = None) -> None:
        """Draws into ``image``.

        Args:
            image: (H, W, 3) uint8, BGR, contiguous; changed in place.
            found: in the frame of ``image``.
            shown_scores: (N,) what labels say instead of ``found.scores``, such as scores averaged over a track.

        Raises:
            ValueError: the image is of another type or size than the detections.
        """
        if image.dtype != np.uint8 or image.shape != (*found.image_size, 3):
            raise ValueError(
                f"expected an image of {found.image_size} and 3 uint8 channels, got {image.shape} {image.dtype}"
            )
        colours = self.colour_book.assign(found.boxes, found.track_ids)
        sizes = (found.boxes[:, 2] - found.boxes[:, 0]) * (found.boxes[:, 3] - found.boxes[:, 1])
        order = np.argsort(-sizes, kind="stable").tolist()  # small things are drawn over large ones
        thickness = line_thickness(found.image_size)
        for index in order:
            if self.masks and found.masks is not None:
                window, pixels = found.masks.crop(index)
                draw_mask(image, window, pixels, PALETTE[colours[index]], self.alpha, thickness)
            if self.boxes:
                _draw_box(image, found.boxes[index], PALETTE[colours[index]], thickness)
        if self.labels:
            self._draw_labels(image, found, colours, found.scores if shown_scores is None else shown_scores)

    def _draw_labels(self, image: np.ndarray, found: Detections, colours: list[int], scores: np.ndarray) -> None:
        size = font_size(found.image_size)
        if self._painter is None or self._painter.font_size != size:
            self._painter = LabelPainter(size)
        ids = None if found.track_ids is None else found.track_ids.tolist()
        texts = [
            label_text(self.class_names, int(cls), float(score), ids[i] if ids else None)
            for i, (cls, score) in enumerate(zip(found.classes, scores, strict=True))
        ]
        # Tracks keep their turn, so that labels do not change places from frame to frame.
        order = np.argsort(ids, kind="stable").tolist() if ids else list(range(len(found)))
        self._painter.draw(image, [texts[i] for i in order], found.boxes[order], [PALETTE[colours[i]] for i in order])


def draw_mask(
    image: np.ndarray,
    window: Window,
    pixels: np.ndarray,
    colour: tuple[int, int, int],
    alpha: float = MASK_ALPHA,
    thickness: int = 1,
) -> None:
    """Fills a mask and draws its edge, in place.

    Args:
        image: (H, W, 3) uint8 BGR. window, pixels: the mask, as :meth:`Masks.crop` gives it.
        colour: RGB. alpha: how much of it covers the image. thickness: of the edge, in pixels.
    """
    if pixels.size == 0:
        return
    region = image[window.slices]
    tinted = cv2.convertScaleAbs(region, alpha=1 - alpha)
    rows = tinted.reshape(len(tinted), -1)  # (h, 3w): adding a row of the colour is much faster than adding a triple
    rows += np.tile((np.array(colour[::-1]) * alpha).astype(np.uint8), pixels.shape[1])  # rounded down: never over 255
    cv2.copyTo(tinted, pixels, region)
    outlines, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(image, outlines, -1, colour[::-1], thickness, cv2.LINE_8, offset=(window.x0, window.y0))


def line_thickness(image_size: tuple[int, int]) -> int:
    """Pixels: 1 up to VGA, 2 at 720p, 6 at 4K."""
    return max(1, round((image_size[0] * image_size[1]) ** 0.5 / 500))


def font_size(image_size: tuple[int, int]) -> int:
    """Pixels: 17 at 720p, 52 at 4K."""
    return max(MIN_FONT_SIZE, round((image_size[0] * image_size[1]) ** 0.5 * 0.018))


def label_text(names: Sequence[str], cls: int, score: float | None = None, track_id: int | None = None) -> str:
    """Such as ``person 98%``, or ``#7 person 98%`` for a track; a score of NaN is left out, as of annotations."""
    name = names[cls] if 0 <= cls < len(names) else f"class {cls}"
    text = name if track_id is None else f"#{track_id} {name}"
    return text if score is None or math.isnan(score) else f"{text} {score:.0%}"


def _draw_box(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
    height, width = image.shape[:2]
    x0, y0 = (int(v) for v in np.floor(box[:2]))
    x1, y1 = (int(v) - 1 for v in np.ceil(box[2:]))
    x0, x1, y0, y1 = max(x0, 0), min(x1, width - 1), max(y0, 0), min(y1, height - 1)
    if x0 <= x1 and y0 <= y1:
        cv2.rectangle(image, (x0, y0), (x1, y1), colour[::-1], thickness)
