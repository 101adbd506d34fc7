"""Detect objects in large images by overlapping tiles, and merge the detections.

Every tile is predicted like an image of its own. An object in the overlap of two tiles is seen by both: its masks are
compared inside the overlap, where both tiles show the same pixels. Copies are reduced to the best one, and the parts of
an object that tile borders cut are joined. An object larger than a tile can also come from a pass over the whole image,
scaled down.

Frames: tiles and merged detections are in pixels of the whole image, unless a comment says otherwise.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from d2_maskrcnn.data.windowed_images import WindowedImage
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks, MaskSequence
from d2_maskrcnn.structures.windows import Crop, Window, common_pixels
from d2_maskrcnn.tile_merging import SAME, Part, crop_of, merge_parts, parts_of

MIN_TILE = 32  # pixels
BATCH_PIXELS = 2**26  # of the tiles that are cut out at a time
COMPARED_SIDE = 2048  # pixels of the longer side at which objects of the whole image are compared with those of tiles

Detect = Callable[[Sequence[Any]], list[Detections]]


@dataclass(frozen=True)
class Tiling:
    """Settings of a prediction by tiles.

    Attributes:
        size: side of the square tiles in pixels of the image. Objects should be smaller than ``overlap * size``.
        overlap: share of a tile that the next one covers too, in [0, 0.9].
        whole: whether the whole image, scaled down, is predicted as well, for objects larger than the overlap.
        batch_size: most tiles that are cut out at a time.

    Raises:
        UserError: a value is out of range.
    """

    size: int
    overlap: float = 0.2
    whole: bool = True
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.size < MIN_TILE:
            raise UserError(f"Tile size {self.size}: expected at least {MIN_TILE} pixels.")
        if not 0 <= self.overlap <= 0.9:
            raise UserError(f"Overlap {self.overlap} of tiles: expected a share from 0 to 0.9.")

    def tiles(self, height: int, width: int) -> list[Window]:
        """Return the tiles of an image, row by row, all of the same size; the last ones overlap the others more."""
        tall, wide = min(self.size, height), min(self.size, width)
        return [
            Window(x, y, x + wide, y + tall)
            for y in self._starts(height)
            for x in self._starts(width)
        ]  # fmt: skip

    def _starts(self, length: int) -> list[int]:
        last = max(length - self.size, 0)
        return [*range(0, last, max(1, round(self.size * (1 - self.overlap)))), last]


def tiling_of(size: int, overlap: float) -> Tiling | None:
    """Return the tiling of a config's ``INFERENCE.TILE`` and ``OVERLAP``; None for size 0, no tiles."""
    return Tiling(size, overlap) if size else None


def detect_by_tiles(image: np.ndarray | WindowedImage, tiling: Tiling, detect: Detect) -> Detections:
    """Detect the objects of a large image.

    A progress bar is shown. Memory grows with the objects' areas; only twice ``tiling.batch_size`` tiles are in memory
    at a time: those of the next batch are cut out while ``detect`` runs.

    Args:
        image: (H, W, 3) uint8, or any array or windowed image that ``detect`` takes.
        tiling: size of the tiles, and whether the whole image is predicted too.
        detect: maps images (h, w, 3) to their detections with masks.

    Returns:
        The detections of the whole image, highest score first. An image of one tile gives what ``detect`` gives.
    """
    height, width = image.shape[:2]
    tiles = tiling.tiles(height, width)
    if len(tiles) == 1:
        return detect([image])[0]
    parts: list[Part] = []
    has_masks = True
    # Without a terminal, such as in the log of a job, a line every half minute suffices.
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=len(tiles), unit="tile", leave=False, mininterval=interval, delay=interval) as bar:
        for batch, pixels in _cut(image, tiles, tiling.batch_size):
            for index, detections in zip(batch, detect(pixels), strict=True):
                parts.extend(parts_of(detections, tiles[index], index, (height, width)))
                has_masks &= detections.masks is not None
            bar.update(len(batch))
    merged = sorted(merge_parts(parts, tiles), key=lambda part: -part.score)
    objects = _as_detections(merged, (height, width), has_masks)
    if not tiling.whole:
        return objects
    large = detect([image])[0]
    if isinstance(image, WindowedImage):
        image.release()
    sides = (large.boxes[:, 2:] - large.boxes[:, :2]).max(axis=1, initial=0)
    cut = np.array([part.cut for part in merged], dtype=bool)
    return _add_large(objects, cut, large[sides > tiling.overlap * tiling.size])


def _cut(
    image: np.ndarray | WindowedImage, tiles: Sequence[Window], batch_size: int
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yield batches of tiles, by their indices and pixels, in the order in which they are decoded fastest."""
    order = list(range(len(tiles)))
    if isinstance(image, WindowedImage) and image.by_columns:
        order.sort(key=lambda index: tiles[index].x0)
    size = max(1, min(batch_size, BATCH_PIXELS // ((tiles[0].y1 - tiles[0].y0) * (tiles[0].x1 - tiles[0].x0))))
    batches = [order[start : start + size] for start in range(0, len(order), size)]

    def cut(batch: list[int]) -> list[np.ndarray]:
        return [image[tiles[index].slices] for index in batch]

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(cut, batches[0])
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            pixels = pending.result()
            if following is not None:
                pending = pool.submit(cut, following)
            yield batch, pixels


def _add_large(objects: Detections, cut: np.ndarray, large: Detections) -> Detections:
    """Add the objects of the whole image that tiles have not shown, and drop the parts of them that tiles have shown.

    Args:
        objects: merged detections of the tiles. cut: (N,) bool, which of them tile borders have cut.
        large: detections of the whole image, highest score first.
    """
    if not len(large):
        return objects
    step = -(-max(objects.image_size) // COMPARED_SIDE)
    crops = [_coarse_crop(objects, index, step) for index in range(len(objects))]
    keep, added = np.ones(len(objects), dtype=bool), []
    for index in range(len(large)):
        candidates = np.flatnonzero((objects.classes == large.classes[index]) & keep)
        parts = _parts_inside(_coarse_crop(large, index, step), [crops[i] for i in candidates], cut[candidates])
        if parts is not None:
            added.append(index)
            keep[candidates[parts]] = False
    return _concatenate(objects[keep], large[added])


def _parts_inside(mask: Crop, crops: list[Crop], cut: np.ndarray) -> list[int] | None:
    """Return which masks of tiles are cut parts of an object of the whole image; None if the tiles show it as well.

    The tiles show it if one mask matches it, or if complete objects cover more than half of it.
    """
    area, covered, parts = np.count_nonzero(mask[1]), 0, []
    for index, crop in enumerate(crops):
        both, own = common_pixels(mask, crop), np.count_nonzero(crop[1])
        if both > SAME * (area + own - both):
            return None
        if both > SAME * own:
            if cut[index]:
                parts.append(index)
            else:
                covered += both
    return None if covered > SAME * area else parts


def _coarse_crop(detections: Detections, index: int, step: int) -> Crop:
    """Return a mask in the frame of the image scaled down by ``step``."""
    if isinstance(detections.masks, BoxMasks):  # pasted in that frame: a large object takes little memory
        height, width = (-(-side // step) for side in detections.image_size)
        return detections.masks[index].resized(height, width).crop(0)
    window, pixels = crop_of(detections, index)
    x0, y0 = -(-window.x0 // step), -(-window.y0 // step)
    small = pixels[y0 * step - window.y0 :: step, x0 * step - window.x0 :: step]
    return Window(x0, y0, x0 + small.shape[1], y0 + small.shape[0]), small


def _as_detections(parts: Sequence[Part], image_size: tuple[int, int], has_masks: bool) -> Detections:
    masks = CropMasks([part.crop[0] for part in parts], [part.crop[1] for part in parts], image_size)
    return Detections(
        np.array([part.box for part in parts], np.float32).reshape(-1, 4),
        np.array([part.score for part in parts], np.float32),
        np.array([part.label for part in parts], np.int64),
        image_size,
        masks if has_masks else None,
    )


def _concatenate(a: Detections, b: Detections) -> Detections:
    """Return the detections of both, highest score first."""
    masks = None if a.masks is None or b.masks is None else MaskSequence([a.masks, b.masks])
    both = Detections(
        np.concatenate([a.boxes, b.boxes]),
        np.concatenate([a.scores, b.scores]),
        np.concatenate([a.classes, b.classes]),
        a.image_size,
        masks,
    )
    return both[np.argsort(-both.scores, kind="stable")]
