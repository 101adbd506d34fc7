"""Draws a small dataset in COCO format: circles, squares, triangles and stars on a noisy background.

    python datasets/prepare_shapes.py --output datasets/shapes --train 600 --val 100 --size 128 --seed 0

writes ``annotations/instances_{train,val}.json`` and the images ``{train,val}/NNNNNN.png``. Like real data it has
shapes that hide one another (an annotation covers the visible part only), shapes cut off by the border, a few tiny
ones, and crowds (many small shapes under one ``iscrowd`` RLE). Colours hint at the category but do not decide it.

Every image depends on (seed, split, number) alone, so a larger dataset begins with the images of a smaller one.
"""

import argparse
import colorsys
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from tqdm import tqdm

CATEGORIES = ("circle", "square", "triangle", "star")
SPLITS = ("train", "val")
MARKER = "made_by_prepare_shapes.json"

SUPERSAMPLING = 4  # shapes are drawn 4 times as large, then averaged: anti-aliased images and sub-pixel contours
TINY_SHARE, BORDER_SHARE, CROWD_SHARE = 0.06, 0.12, 0.08  # of shapes, of shapes, of images
RADIUS, TINY_RADIUS, CROWD_RADIUS = (0.10, 0.26), (0.025, 0.045), (0.02, 0.035)  # in image sides
MIN_VISIBLE = 0.4  # a shape is not placed where less than this would be left of one below it
MIN_PART_AREA = 3.0  # square pixels; smaller slivers of a partly hidden shape are not annotated


@dataclass
class Shape:
    """A shape as placed: its outline and what can still be seen of it.

    Attributes:
        category: index in ``CATEGORIES``.
        full: (S, S) bool, the supersampled image's pixels it covers, hidden ones included.
        visible: (S, S) bool, those that no later shape hides.
    """

    category: int
    full: np.ndarray
    visible: np.ndarray


def outline(category: str, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Corners of a shape.

    Args:
        category: one of ``CATEGORIES``.
        centre: (2,) x and y, in pixels; pixel i covers [i, i + 1].
        radius: from the centre to the outermost corner, in pixels.
        angle: turn in radians.

    Returns:
        (N, 2) x and y in the same frame.
    """
    count = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[category]
    angles = angle + 2 * math.pi * np.arange(count) / count
    radii = np.full(count, radius)
    if category == "star":
        radii[1::2] *= 0.45
    return centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rasterise(corners: np.ndarray, size: int) -> np.ndarray:
    """(S, S) bool mask, S = size * SUPERSAMPLING, of the polygon ``corners`` (N, 2) given in image pixels."""
    mask = np.zeros((size * SUPERSAMPLING, size * SUPERSAMPLING), np.uint8)
    fixed_point = np.round((corners * SUPERSAMPLING - 0.5) * 16).astype(np.int32)  # OpenCV's pixel centres are integers
    cv2.fillPoly(mask, [fixed_point], 1, lineType=cv2.LINE_8, shift=4)
    return mask.astype(bool)


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float32 BGR in 0..255: blurred greyish blotches, faint stripes, pixel noise."""
    cells = rng.uniform(60, 190, (5, 5, 1)) + rng.normal(0, 12, (5, 5, 3))
    image = cv2.resize(cells.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    image += stripes(rng, size, strength=8.0)[..., None]
    return image + rng.normal(0, 7, image.shape)


def stripes(rng: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """(size, size) float32 sine waves of a random direction and wavelength, between -strength and strength."""
    angle, wavelength, phase = rng.uniform(0, math.pi), size * rng.uniform(0.06, 0.25), rng.uniform(0, 2 * math.pi)
    position = np.arange(size, dtype=np.float32)
    along = position * math.cos(angle) + position[:, None] * math.sin(angle)
    return np.sin(along * (2 * math.pi / wavelength) + phase) * strength


def pick_colour(rng: np.random.Generator, category: int) -> np.ndarray:
    """(3,) BGR in 0..255: saturated, of a hue around the category's own (standard deviation 30 degrees of 360)."""
    hue = (category / len(CATEGORIES) + rng.normal(0, 30 / 360)) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.65, 1.0), rng.uniform(0.65, 1.0))
    return 255 * np.array([blue, green, red])


def paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Paints ``mask`` (S, S) in a slightly striped and noisy ``colour`` onto ``image`` (size, size, 3), in place."""
    size = image.shape[0]
    alpha = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)[..., None]
    texture = colour + stripes(rng, size, strength=14.0)[..., None] + rng.normal(0, 6, image.shape)
    image[:] = (1 - alpha) * image + alpha * texture


def pick_place(rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
    """Centre (2,) and radius, in pixels, of a new shape: tiny, on the border, or (mostly) clear and inside."""
    if rng.random() < TINY_SHARE:
        return rng.uniform(0.06, 0.94, 2) * size, float(rng.uniform(*TINY_RADIUS)) * size
    radius = float(rng.uniform(*RADIUS)) * size
    centre = rng.uniform(radius, size - radius, 2)
    if rng.random() < BORDER_SHARE:
        centre[rng.integers(2)] = rng.choice([0, size]) + rng.uniform(-0.3, 0.3) * radius
    return centre, radius


def has_hole(mask: np.ndarray) -> bool:
    """Whether ``mask`` (S, S) encloses pixels that are not its own: such a region is no list of simple polygons."""
    _, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())


def may_cover(mask: np.ndarray, below: list[Shape]) -> bool:
    """Whether every shape in ``below`` stays visible enough, and without a hole, when ``mask`` (S, S) is put on it."""
    for shape in below:
        if not (mask & shape.visible).any():
            continue
        left = shape.visible & ~mask
        if left.sum() < MIN_VISIBLE * shape.full.sum() or has_hole(left):
            return False
    return True


def place_shape(rng: np.random.Generator, size: int, below: list[Shape]) -> Shape | None:
    """Tries a few places for a shape of a random category; None where none leaves the others visible."""
    category = int(rng.integers(len(CATEGORIES)))
    for _ in range(12):
        centre, radius = pick_place(rng, size)
        mask = rasterise(outline(CATEGORIES[category], centre, radius, rng.uniform(0, 2 * math.pi)), size)
        if mask.any() and may_cover(mask, below):
            return Shape(category, mask, mask.copy())
    return None


def draw_crowd(rng: np.random.Generator, image: np.ndarray) -> Shape:
    """Draws 12 to 20 small shapes of one category close together; the region between them belongs to the crowd too."""
    size = image.shape[0]
    category, centre = int(rng.integers(len(CATEGORIES))), rng.uniform(0.2, 0.8, 2) * size
    together = np.zeros((size * SUPERSAMPLING,) * 2, bool)
    for _ in range(rng.integers(12, 21)):
        place = centre + rng.normal(0, 0.08, 2) * size
        corners = outline(CATEGORIES[category], place, rng.uniform(*CROWD_RADIUS) * size, rng.uniform(0, 2 * math.pi))
        mask = rasterise(corners, size)
        paint(rng, image, mask, pick_colour(rng, category))
        together |= mask
    reach = int(0.1 * size * SUPERSAMPLING) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    region = cv2.morphologyEx(together.astype(np.uint8), cv2.MORPH_CLOSE, kernel).astype(bool)
    return Shape(category, region, region.copy())


def draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Shape], Shape | None]:
    """Draws one image.

    Returns:
        The image (size, size, 3) uint8 BGR, its shapes from bottom to top, and its crowd (below all shapes) or None.
    """
    image = draw_background(rng, size)
    crowd = draw_crowd(rng, image) if rng.random() < CROWD_SHARE else None
    shapes: list[Shape] = []
    for _ in range(rng.integers(1, 6)):
        shape = place_shape(rng, size, shapes)
        if shape is None:
            continue
        paint(rng, image, shape.full, pick_colour(rng, shape.category))
        for other in [*shapes, *([crowd] if crowd else [])]:
            other.visible &= ~shape.full
        shapes.append(shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), shapes, crowd


def to_polygons(mask: np.ndarray) -> list[list[float]]:
    """The region ``mask`` (S, S) as COCO polygons ``[x0, y0, x1, y1, ...]`` in image pixels, slivers left out."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        if len(contour) < 3:
            continue
        corners = grow_to_edges(cv2.approxPolyDP(contour, 0.8, closed=True)[:, 0].astype(np.float64), mask.shape[0])
        if len(corners) >= 3 and abs(cv2.contourArea(corners.astype(np.float32))) >= MIN_PART_AREA:
            polygons.append([round(float(value), 2) for value in corners.ravel()])
    return polygons


def grow_to_edges(corners: np.ndarray, side: int) -> np.ndarray:
    """Pixel indices (N, 2) of a supersampled contour -> image pixels, up to the image's edge where it touches it.

    A contour goes through the centres of the outermost pixels; half a supersampled pixel (1/8 pixel) matters on the
    border alone, where a shape must end exactly at the image's edge.
    """
    centres = corners + 0.5
    centres[corners == 0] = 0
    centres[corners == side - 1] = side
    return centres / SUPERSAMPLING


def is_cut(shape: Shape) -> bool:
    """Whether a part of the shape is hidden or lies beyond the border."""
    full = shape.full
    at_border = full[0].any() or full[-1].any() or full[:, 0].any() or full[:, -1].any()
    return bool(at_border or (shape.visible != full).any())


def without_slivers(mask: np.ndarray) -> np.ndarray:
    """``mask`` (S, S) without what is narrower than a pixel: edges that a cut leaves and that nobody can see."""
    kernel = np.ones((SUPERSAMPLING | 1, SUPERSAMPLING | 1), np.uint8)  # an even one would shift the mask
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)


def annotate_shape(shape: Shape, size: int) -> dict[str, Any] | None:
    """COCO annotation of the visible part of a shape, or None where only slivers are left."""
    polygons = to_polygons(without_slivers(shape.visible) if is_cut(shape) else shape.visible)
    if not polygons:
        return None
    corners = np.concatenate([np.array(polygon).reshape(-1, 2) for polygon in polygons])
    area = float(mask_util.area(mask_util.merge(mask_util.frPyObjects(polygons, size, size))))
    if area == 0:
        return None
    return {
        "category_id": shape.category + 1,
        "segmentation": polygons,
        "bbox": box_of(corners.min(axis=0), corners.max(axis=0)),
        "area": area,
        "iscrowd": 0,
    }


def annotate_crowd(crowd: Shape, size: int) -> dict[str, Any] | None:
    """COCO annotation (uncompressed RLE, iscrowd 1) of the visible part of a crowd, or None where nothing is left."""
    mask = cv2.resize(crowd.visible.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) >= 0.5
    if not mask.any():
        return None
    ys, xs = np.nonzero(mask)
    pixels = mask.ravel(order="F")  # COCO's RLE runs down the columns and begins with a run of zeros
    changes = np.flatnonzero(np.diff(pixels)) + 1
    starts = np.concatenate([[0], [0] if pixels[0] else [], changes, [pixels.size]])
    return {
        "category_id": crowd.category + 1,
        "segmentation": {"size": [size, size], "counts": [int(run) for run in np.diff(starts)]},
        "bbox": box_of(np.array([xs.min(), ys.min()]), np.array([xs.max() + 1, ys.max() + 1])),
        "area": float(mask.sum()),
        "iscrowd": 1,
    }


def box_of(low: np.ndarray, high: np.ndarray) -> list[float]:
    """COCO box [x, y, width, height] from the two corners, each (2,)."""
    return [round(float(value), 2) for value in (*low, *(high - low))]


def draw_split(root: Path, split: str, count: int, size: int, seed: int) -> None:
    """Writes the images and the JSON of one split under ``root``."""
    (root / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in tqdm(range(1, count + 1), desc=f"shapes {split}", unit="image", leave=False, disable=None):
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        image, shapes, crowd = draw_image(rng, size)
        name = f"{number:06d}.png"
        # write_bytes raises OSError where cv2.imwrite would only return False (a full disk, say)
        (root / split / name).write_bytes(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        found = [annotate_shape(shape, size) for shape in shapes] + ([annotate_crowd(crowd, size)] if crowd else [])
        for annotation in filter(None, found):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    data = {
        "info": {"description": f"shapes drawn by prepare_shapes.py, split {split}, size {size}, seed {seed}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CATEGORIES)],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def draw_dataset(
    output: str | os.PathLike[str], train: int, val: int, size: int, seed: int, overwrite: bool = False
) -> bool:
    """Draws the whole dataset into the folder ``output``: all of it or nothing.

    A folder that this function made before is kept where it was made with the same arguments, and replaced otherwise.

    Args:
        output: the folder to make.
        train: number of training images.
        val: number of validation images.
        size: side of the square images, in pixels.
        seed: of the random generator.
        overwrite: take the place of a folder made by something else, which is kept as ``<output>.old``.

    Returns:
        False where the same dataset was there already, True where it was drawn.

    Raises:
        ValueError: a number out of range.
        FileExistsError: ``output`` exists, was made by something else, and ``overwrite`` is False.
    """
    if train < 1 or val < 1 or size < 32 or seed < 0:
        raise ValueError(
            f"train={train}, val={val}, size={size}, seed={seed}: expected train and val >= 1, size >= 32, seed >= 0"
        )
    target = Path(output).resolve()
    made_with = {"train": train, "val": val, "size": size, "seed": seed, "version": 2}
    marker = target / MARKER
    ours = marker.is_file()
    if ours and marker.read_text() == json.dumps(made_with) and not overwrite:
        return False
    if target.exists() and not ours:
        _check_may_replace(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        (partial / "annotations").mkdir(parents=True)
        for split, count in (("train", train), ("val", val)):
            draw_split(partial, split, count, size, seed)
        (partial / MARKER).write_text(json.dumps(made_with))
        _put_in_place(partial, target, keep_old=not ours)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _check_may_replace(target: Path, overwrite: bool) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"{target} exists and was not made by prepare_shapes.py: name another --output, or give --overwrite "
            f"(it is then kept as {target.name}.old)"
        )
    if _old(target).exists():
        raise FileExistsError(f"{_old(target)} is in the way of keeping {target}: move or delete it first")


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def _put_in_place(partial: Path, target: Path, keep_old: bool) -> None:
    """Renames ``partial`` to ``target``; what was there is deleted, or kept beside it as ``<target>.old``."""
    if target.exists():
        if keep_old and (not target.is_dir() or any(target.iterdir())):
            target.rename(_old(target))
        elif target.is_dir():
            shutil.rmtree(target)
    partial.rename(target)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draws a small COCO-format dataset of simple shapes.")
    parser.add_argument("--output", default="datasets/shapes", help="folder to make (default: %(default)s)")
    parser.add_argument("--train", type=int, default=600, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that something else made")
    options = parser.parse_args(arguments)
    try:
        drawn = draw_dataset(**vars(options))
    except (ValueError, OSError) as error:
        print(f"prepare_shapes.py: {error}", file=sys.stderr)
        return 1
    counts = f"{options.train} training and {options.val} validation images"
    print(f"{options.output}: {counts}" + ("" if drawn else " were there already"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
