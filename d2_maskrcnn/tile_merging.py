"""Merge the detections of overlapping tiles.

Two masks are compared inside the overlap of their tiles, where both tiles show the same pixels. All coordinates are
pixels of the whole image, unless a comment says otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.windows import EMPTY_WINDOW, Crop, Window, common_pixels, restrict

SAME = 0.5  # IoU in the overlap of two tiles above which two masks are of one object
CONTAINED = 0.8  # share of a cut part inside a complete object above which it is a part of it
BORDER = 0.02  # share of a tile: a box that ends so close to a border inside the image is cut by it


@dataclass
class Part:
    """A detection of a tile.

    Attributes:
        box: (4,) float32 XYXY. crop: the mask. score, label: score and class.
        tile: index of the tile. cut: whether a border of the tile inside the image cuts it.
    """

    box: np.ndarray
    crop: Crop
    score: float
    label: int
    tile: int
    cut: bool


def parts_of(detections: Detections, tile: Window, index: int, image_size: tuple[int, int]) -> Iterator[Part]:
    """Convert the detections of a tile, in the tile's frame, to parts."""
    height, width = image_size
    inner = np.array([tile.x0 > 0, tile.y0 > 0, tile.x1 < width, tile.y1 < height])
    margin = max(2.0, BORDER * max(tile.x1 - tile.x0, tile.y1 - tile.y0))
    offset = np.array([tile.x0, tile.y0] * 2, np.float32)
    for number in range(len(detections)):
        box = detections.boxes[number] + offset
        distance = np.abs(box - np.array(tile, np.float32))
        window, pixels = crop_of(detections, number)
        crop = (window.shifted(tile.x0, tile.y0), pixels)
        cut = bool((inner & (distance <= margin)).any())
        yield Part(box, crop, float(detections.scores[number]), int(detections.classes[number]), index, cut)


def crop_of(detections: Detections, number: int) -> Crop:
    """Return the mask of a detection, or its whole box if it has none."""
    if detections.masks is not None:
        return detections.masks.crop(number)
    x0, y0, x1, y1 = (int(side) for side in np.rint(detections.boxes[number]))
    return Window(x0, y0, x1, y1), np.ones((y1 - y0, x1 - x0), np.uint8)


def merge_parts(parts: list[Part], tiles: Sequence[Window]) -> list[Part]:
    """Reduce the parts of each object to one.

    Of complete copies, the one with the highest score stays, and cut copies are dropped. Cut parts without a complete
    copy are joined: the union of their masks, the highest score.
    """
    from scipy.sparse import coo_array  # slow to import, and only tiles need it
    from scipy.sparse.csgraph import connected_components

    first, second = _same_objects(parts, tiles)
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(parts), len(parts)))
    count, group = connected_components(links, directed=False) if parts else (0, np.zeros(0, int))
    members: list[list[Part]] = [[] for _ in range(count)]
    for part, number in zip(parts, group, strict=True):
        members[number].append(part)
    merged: list[Part] = []
    for copies in members:
        complete = sorted((each for each in copies if not each.cut), key=lambda each: -each.score)
        merged.extend(_distinct(complete) if complete else [_join(copies)])
    return merged


def _same_objects(parts: list[Part], tiles: Sequence[Window]) -> tuple[list[int], list[int]]:
    """Return the pairs of parts, of two tiles each, that show the same object."""
    by_tile: list[list[int]] = [[] for _ in tiles]
    for index, part in enumerate(parts):
        by_tile[part.tile].append(index)
    first, second = [], []
    used = np.array([number for number, members in enumerate(by_tile) if members], np.int64)
    sides = np.array(tiles)[used].reshape(-1, 4)
    for place, number in enumerate(used):
        tile, others = tiles[number], sides[place + 1 :]
        overlap = (others[:, :2] < tile[2:]).all(axis=1) & (others[:, 2:] > tile[:2]).all(axis=1)
        for later in used[place + 1 :][overlap]:
            shared = tile.intersection(tiles[later])
            for a, b in _overlapping(parts, by_tile[number], by_tile[later]):
                if _same_in(shared, parts[a], parts[b]):
                    first.append(a)
                    second.append(b)
    return first, second


def _overlapping(parts: list[Part], ones: list[int], others: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of the same class whose boxes overlap."""
    a, b = (np.stack([parts[index].box for index in group]) for group in (ones, others))
    labels = [np.array([parts[index].label for index in group]) for group in (ones, others)]
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    touching = (high > low).all(axis=2) & (labels[0][:, None] == labels[1][None])
    for row, column in np.argwhere(touching):
        yield ones[row], others[column]


def _same_in(shared: Window, a: Part, b: Part) -> bool:
    """Return whether two masks agree in the overlap of their tiles."""
    one, other = restrict(a.crop, shared), restrict(b.crop, shared)
    both = common_pixels(one, other)
    if not both:
        return False
    areas = (np.count_nonzero(one[1]), np.count_nonzero(other[1]))
    if both > SAME * (sum(areas) - both):
        return True
    if a.cut == b.cut:
        return False
    part, seen = (a, areas[0]) if a.cut else (b, areas[1])  # a small part of an object has an uncertain mask
    return bool(both > CONTAINED * seen and seen > CONTAINED * np.count_nonzero(part.crop[1]))


def _distinct(complete: list[Part]) -> list[Part]:
    """Drop copies of the same object, which come in descending order of their scores."""
    kept: list[Part] = []
    for part in complete:
        area = np.count_nonzero(part.crop[1])
        if all(
            (both := common_pixels(part.crop, other.crop)) <= SAME * (area + np.count_nonzero(other.crop[1]) - both)
            for other in kept
        ):
            kept.append(part)
    return kept


def _join(parts: list[Part]) -> Part:
    """Join the parts of one object."""
    if len(parts) == 1:
        return parts[0]
    windows = np.array([part.crop[0] for part in parts if part.crop[1].size] or [EMPTY_WINDOW])
    union = Window(*windows[:, :2].min(axis=0).tolist(), *windows[:, 2:].max(axis=0).tolist())
    pixels = np.zeros((union.y1 - union.y0, union.x1 - union.x0), np.uint8)
    for part in (each for each in parts if each.crop[1].size):
        pixels[part.crop[0].inside(union).slices] |= part.crop[1]
    boxes = np.stack([part.box for part in parts])
    box = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    best = max(parts, key=lambda part: part.score)
    return Part(box, (union, pixels), best.score, best.label, best.tile, cut=True)
