"""Draw labels: text on a plain background, inside the image and, if there is room, without overlaps."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from d2_maskrcnn.errors import printable
from d2_maskrcnn.visualization.palette import Color, text_color

Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels

_CACHED_STAMPS = 512
# In crowded images labels are thinned: beyond a few, none may be larger than its object or hide more than a share of
# the others, and all together may cover a share of the image only. The few may cover another share, in small images.
_MAX_COVERAGE, _MAX_HIDDEN, _ALWAYS_SHOWN, _MAX_COVERAGE_OF_FEW = 0.1, 0.25, 10, 0.25
_MAX_DISTANCE = 2  # how far a label may be above or below its box, in heights of the label
_MAX_PLACES = 24  # rows of candidate places along a box
_COST_OF_DISTANCE = 0.25  # of a label that is its height away from its box, as a share of its area that is hidden


def font_path(text: str) -> str:
    """Return the font file for a text.

    That is DejaVu Sans, which matplotlib includes (Latin, Greek, Cyrillic and more), or the font of this machine that
    has the most of the characters that DejaVu Sans lacks.
    """
    default = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    missing = frozenset() if text.isascii() else frozenset(map(ord, text)) - _characters(default)
    return _font_with(missing) or default if missing else default


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points of a font file."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


@lru_cache(maxsize=256)
def _font_with(characters: frozenset[int]) -> str | None:
    """Return the installed font with the most of these code points, or None if no font has any."""
    from matplotlib import font_manager

    paths = {font.fname for font in font_manager.fontManager.ttflist if "LastResort" not in font.fname}
    counts = {path: len(characters & _characters(path)) for path in sorted(paths)}
    best = max(counts, key=lambda path: counts[path], default=None)
    return best if best is not None and counts[best] else None


@lru_cache(maxsize=64)
def _load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


class LabelPainter:
    """Draw texts beside boxes, all in one size.

    Args:
        font_size: height of the text in pixels.
    """

    def __init__(self, font_size: int) -> None:
        self.font_size = font_size
        self.padding = max(1, font_size // 5)
        self._stamps: OrderedDict[tuple[str, Color, int], np.ndarray] = OrderedDict()

    def draw(self, image: np.ndarray, texts: Sequence[str], boxes: np.ndarray, colors: Sequence[Color]) -> None:
        """Draw one text at each box, in place; in crowded images, only as many of the first texts as are readable.

        Args:
            image: (H, W, 3) uint8, BGR.
            texts: N texts, the most important first; "" for a box without a label.
            boxes: (N, 4) XYXY in pixels.
            colors: N backgrounds, RGB.
        """
        size = (image.shape[0], image.shape[1])

        def stamp(index: int) -> np.ndarray:
            return self.stamp(texts[index], colors[index], size[1])

        shown = [index for index, text in enumerate(texts) if text]
        for number, (x0, y0, x1, y1) in choose_places(
            boxes[shown], lambda number: (stamp(shown[number]).shape[0], stamp(shown[number]).shape[1]), size
        ):
            image[y0:y1, x0:x1] = stamp(shown[number])[: y1 - y0, : x1 - x0]

    def stamp(self, text: str, color: Color, max_width: int) -> np.ndarray:
        """Render a text on its background, shortened by an ellipsis to ``max_width``: (h, w, 3) uint8, BGR."""
        key = (text, color, max_width)
        if key not in self._stamps:
            self._stamps[key] = self._render(text, color, max_width)
        self._stamps.move_to_end(key)
        if len(self._stamps) > _CACHED_STAMPS:
            self._stamps.popitem(last=False)
        return self._stamps[key]

    def _render(self, text: str, color: Color, max_width: int) -> np.ndarray:
        text = printable(text)[:max_width]  # longer texts cannot fit
        font, room = _load_font(font_path(text), self.font_size), max_width - 2 * self.padding
        while len(text) > 1 and font.getlength(text) > room:
            text = text[:-2] + "…"
        width = min(max_width, int(np.ceil(font.getlength(text))) + 2 * self.padding)
        height = int(np.ceil(self.font_size * 1.2)) + self.padding
        image = Image.new("RGB", (max(1, width), height), color)
        ImageDraw.Draw(image).text((self.padding, height / 2), text, fill=text_color(color), font=font, anchor="lm")
        return np.asarray(image)[:, :, ::-1].copy()


def choose_places(
    boxes: np.ndarray, size_of: Callable[[int], tuple[int, int]], image_size: tuple[int, int]
) -> Iterator[tuple[int, Rect]]:
    """Choose the places of labels; in crowded images, of only as many of the first ones as are readable.

    Args:
        boxes: (N, 4) XYXY in pixels, those with the most important labels first.
        size_of: returns the height and width in pixels of the label with an index; not called for those left out.
        image_size: (H, W).

    Yields:
        The index of a label and its place.
    """
    taken: list[Rect] = []
    covered = 0
    for index, box in enumerate(boxes):
        height, width = size_of(index)
        area, crowded = height * width, len(taken) >= _ALWAYS_SHOWN
        limit = _MAX_COVERAGE if crowded else _MAX_COVERAGE_OF_FEW
        if taken and covered + area > limit * image_size[0] * image_size[1]:
            break
        if crowded and area > np.prod(box[2:] - box[:2]):
            continue
        rect = place(box, width, min(height, image_size[0]), image_size, taken)
        if crowded and sum(_overlap(rect, other) for other in taken) > _MAX_HIDDEN * area:
            continue
        taken.append(rect)
        covered += area
        yield index, rect


def place(box: np.ndarray, width: int, height: int, image_size: tuple[int, int], taken: Sequence[Rect]) -> Rect:
    """Find the place of a box's label inside the image.

    The first of these places that no other label covers: above the box's top left corner, inside it, below the bottom
    left corner, inside that, above and inside the top right corner. Without one, a place along the box's sides that is
    little covered and near to the box.

    Args:
        box: (4,) XYXY in pixels.
        width, height: of the label, at most the image's.
        image_size: (H, W).
        taken: the labels that have been placed.
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
        if top < 0 or top + height > image_size[0]:
            continue
        left = min(max(left, 0), image_size[1] - width)
        rect = (left, top, left + width, top + height)
        if not any(_overlap(rect, other) for other in taken):
            return rect
    places = np.array(corners + _along_sides((x0, y0, x1, y1), width, height))
    lefts_and_tops = np.clip(places, 0, (image_size[1] - width, image_size[0] - height))
    rects = np.concatenate((lefts_and_tops, lefts_and_tops + (width, height)), axis=1)
    distance = np.maximum(y0 - rects[:, 3], rects[:, 1] - y1).clip(0)
    cost = _covered(rects, np.array(taken).reshape(-1, 4)) + _COST_OF_DISTANCE * distance * width
    left, top, right, bottom = rects[int(cost.argmin())].tolist()
    return left, top, right, bottom


def _along_sides(box: Rect, width: int, height: int) -> list[tuple[int, int]]:
    """Return left and top of places along a box's sides, those nearest to its top first."""
    x0, y0, x1, y1 = box
    first, last = y0 - (1 + _MAX_DISTANCE) * height, y1 + _MAX_DISTANCE * height
    step = max(height, (last - first) // _MAX_PLACES)
    tops = sorted(range(first, last + 1, step), key=lambda top: abs(top - y0))
    return [(left, top) for top in tops for left in (x0, x1 - width)]


def _covered(rects: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each of (P, 4) rectangles the areas that it shares with (Q, 4) others, in pixels: (P,)."""
    shared = np.minimum(rects[:, None, 2:], others[:, 2:]) - np.maximum(rects[:, None, :2], others[:, :2])
    return np.prod(np.clip(shared, 0, None), axis=2).sum(axis=1)


def _overlap(a: Rect, b: Rect) -> int:
    """Return the area that two rectangles share, in pixels."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
