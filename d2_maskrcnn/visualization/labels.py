"""Labels that stay readable: real type, a plain background, inside the frame and clear of one another if possible."""

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from d2_maskrcnn.visualization.palette import text_colour

_CACHED_STAMPS = 512
_STEPS_BEYOND, _PLACES = 2, 24  # how far from its box a label may go in a crowd, in labels; tops that are looked at
Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels


@lru_cache(maxsize=8)
def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans (it has Latin, Greek and Cyrillic letters), ``size`` pixels high; Pillow's own font without it."""
    try:
        import matplotlib  # it brings the font along

        return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


class LabelPainter:
    """Stamps texts onto images of one size.

    Args:
        font_size: height of the type in pixels.
    """

    def __init__(self, font_size: int) -> None:
        self.font_size = font_size
        self.padding = max(1, font_size // 5)
        self._stamps: OrderedDict[tuple[str, tuple[int, int, int], int], np.ndarray] = OrderedDict()

    def draw(self, image: np.ndarray, texts: list[str], boxes: np.ndarray, colours: list[tuple[int, int, int]]) -> None:
        """Writes one text at each box, in place.

        Args:
            image: (H, W, 3) uint8, BGR.
            boxes: (N, 4) XYXY of the N texts. colours: N backgrounds, RGB.
        """
        height, width = image.shape[:2]
        taken: list[Rect] = []
        for text, box, colour in zip(texts, boxes, colours, strict=True):
            stamp = self.stamp(text, colour, width)
            rect = place(box, stamp.shape[1], min(stamp.shape[0], height), (height, width), taken)
            taken.append(rect)
            x0, y0, x1, y1 = rect
            image[y0:y1, x0:x1] = stamp[: y1 - y0, : x1 - x0]

    def stamp(self, text: str, colour: tuple[int, int, int], max_width: int) -> np.ndarray:
        """The text on its background, (h, w, 3) uint8 BGR; cut with an ellipsis where wider than ``max_width``."""
        key = (text, colour, max_width)
        if key in self._stamps:
            self._stamps.move_to_end(key)
            return self._stamps[key]
        stamp = self._render(text, colour, max_width)
        self._stamps[key] = stamp
        if len(self._stamps) > _CACHED_STAMPS:
            self._stamps.popitem(last=False)
        return stamp

    def _render(self, text: str, colour: tuple[int, int, int], max_width: int) -> np.ndarray:
        font, room = load_font(self.font_size), max_width - 2 * self.padding
        text = " ".join(text.split())
        while len(text) > 1 and font.getlength(text) > room:
            text = text[:-2] + "…"
        width = min(max_width, int(np.ceil(font.getlength(text))) + 2 * self.padding)
        height = int(np.ceil(self.font_size * 1.2)) + self.padding
        image = Image.new("RGB", (max(1, width), height), colour)
        ImageDraw.Draw(image).text((self.padding, height / 2), text, fill=text_colour(colour), font=font, anchor="lm")
        return np.asarray(image)[:, :, ::-1].copy()


def place(box: np.ndarray, width: int, height: int, frame: tuple[int, int], taken: list[Rect]) -> Rect:
    """Where a label of a box goes: wholly inside the frame, at the first of these places that no other label covers.

    Above the box's top left corner, inside it, below the bottom left corner, inside that, above and inside the top
    right corner; then along the box's sides and a little beyond them; then the least covered of all these.

    Args:
        box: (4,) XYXY. width, height: of the label, at most the frame's. frame: (H, W) of the image.
        taken: where labels are already.
    """
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    corners = [
        (x0, y0 - height),
        (x0, y0),
        (x0, y1),
        (x0, y1 - height),
        (x1 - width, y0 - height),
        (x1 - width, y0),
    ]
    for left, top in corners:
        if top < 0 or top + height > frame[0]:
            continue
        left = min(max(left, 0), frame[1] - width)
        rect = (left, top, left + width, top + height)
        if not any(_overlap(rect, other) for other in taken):
            return rect
    return _least_covered(corners + _along_sides((x0, y0, x1, y1), width, height), width, height, frame, taken)


def _along_sides(box: Rect, width: int, height: int) -> list[tuple[int, int]]:
    """Left and top of places in steps of a label's height, the nearest to the box's top first."""
    x0, y0, x1, y1 = box
    first, last = y0 - (1 + _STEPS_BEYOND) * height, y1 + _STEPS_BEYOND * height
    step = max(height, (last - first) // _PLACES)
    tops = sorted(range(first, last + 1, step), key=lambda top: abs(top - y0))
    return [(left, top) for top in tops for left in (x0, x1 - width)]


def _least_covered(
    places: list[tuple[int, int]], width: int, height: int, frame: tuple[int, int], taken: list[Rect]
) -> Rect:
    corners = np.array(places)
    corners = np.clip(corners, 0, (frame[1] - width, frame[0] - height))
    rects = np.concatenate((corners, corners + (width, height)), axis=1)[:, None]  # (P, 1, 4)
    others = np.array(taken).reshape(1, -1, 4)
    shared = np.minimum(rects[..., 2:], others[..., 2:]) - np.maximum(rects[..., :2], others[..., :2])
    covered = np.prod(np.clip(shared, 0, None), axis=2).sum(axis=1)
    x0, y0, x1, y1 = rects[int(covered.argmin()), 0].tolist()
    return x0, y0, x1, y1


def _overlap(a: Rect, b: Rect) -> int:
    """Pixels that two rectangles share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
