"""Draw a small dataset in COCO format: circles, squares, triangles and stars on a noisy background.

    python datasets/prepare_shapes.py --output datasets/shapes --train 600 --val 100 --size 128 --seed 0

writes ``annotations/instances_{train,val}.json`` and the images ``{train,val}/NNNNNN.png``. Like real data it has
shapes that occlude one another (an annotation covers the visible part only), shapes cut off by the border, a few tiny
ones, and crowds (many small shapes under one ``iscrowd`` RLE). The color hints at the category but does not determine
it.

Every image is a function of (seed, split, number), so a larger dataset begins with the images of a smaller one.
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
MIN_VISIBLE = 0.4  # least visible fraction of a shape that others occlude
MIN_PART_AREA = 3.0  # square pixels; smaller slivers of an occluded shape are not annotated


@dataclass
class Shape:
    """A shape in an image, as masks of supersampled pixels.

    Attributes:
        category: index in ``CATEGORIES``.
        full: (S, S) bool, S = size * SUPERSAMPLING, all pixels of the shape.
        visible: (S, S) bool, those that no later shape occludes.
    """

    category: int
    full: np.ndarray
    visible: np.ndarray


def corners_of(category: str, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Return the corners of a shape.

    Args:
        category: one of ``CATEGORIES``.
        center: (2,) x and y, in pixels; pixel i covers [i, i + 1].
        radius: from the center to the outermost corner, in pixels.
        angle: rotation in radians.

    Returns:
        (N, 2) x and y in the same frame.
    """
    count = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[category]
    angles = angle + 2 * math.pi * np.arange(count) / count
    radii = np.full(count, radius)
    if category == "star":
        radii[1::2] *= 0.45
    return center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rasterize(corners: np.ndarray, size: int) -> np.ndarray:
    """Rasterize a polygon (N, 2) in image pixels: (S, S) bool, S = size * SUPERSAMPLING."""
    mask = np.zeros((size * SUPERSAMPLING, size * SUPERSAMPLING), np.uint8)
    fixed_point = np.round((corners * SUPERSAMPLING - 0.5) * 16).astype(np.int32)  # OpenCV's pixel centers are integers
    cv2.fillPoly(mask, [fixed_point], 1, lineType=cv2.LINE_8, shift=4)
    return mask.astype(bool)


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw gray blotches, faint stripes and pixel noise: (size, size, 3) float32 BGR in 0..255."""
    cells = rng.uniform(60, 190, (5, 5, 1)) + rng.normal(0, 12, (5, 5, 3))
    image = cv2.resize(cells.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    image += stripes(rng, size, strength=8.0)[..., None]
    return image + rng.normal(0, 7, image.shape)


def stripes(rng: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """Draw sine waves of a random direction and wavelength: (size, size) float32 in [-strength, strength]."""
    angle, wavelength, phase = rng.uniform(0, math.pi), size * rng.uniform(0.06, 0.25), rng.uniform(0, 2 * math.pi)
    position = np.arange(size, dtype=np.float32)
    along = position * math.cos(angle) + position[:, None] * math.sin(angle)
    return np.sin(along * (2 * math.pi / wavelength) + phase) * strength


def sample_color(rng: np.random.Generator, category: int) -> np.ndarray:
    """Sample a saturated color with a hue around the category's (standard deviation 30 degrees): (3,) BGR in 0..255."""
    hue = (category / len(CATEGORIES) + rng.normal(0, 30 / 360)) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.65, 1.0), rng.uniform(0.65, 1.0))
    return 255 * np.array([blue, green, red])


def paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Paint ``mask`` (S, S) in a slightly striped and noisy ``color`` onto ``image`` (size, size, 3), in place."""
    size = image.shape[0]
    alpha = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)[..., None]
    texture = color + stripes(rng, size, strength=14.0)[..., None] + rng.normal(0, 6, image.shape)
    image[:] = (1 - alpha) * image + alpha * texture


def sample_place(rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
    """Sample the center (2,) and radius, in pixels, of a shape: tiny, on the border, or (mostly) large and inside."""
    if rng.random() < TINY_SHARE:
        return rng.uniform(0.06, 0.94, 2) * size, float(rng.uniform(*TINY_RADIUS)) * size
    radius = float(rng.uniform(*RADIUS)) * size
    center = rng.uniform(radius, size - radius, 2)
    if rng.random() < BORDER_SHARE:
        center[rng.integers(2)] = rng.choice([0, size]) + rng.uniform(-0.3, 0.3) * radius
    return center, radius


def has_hole(mask: np.ndarray) -> bool:
    """Return whether ``mask`` (S, S) has a hole, so that it is not a union of simple polygons."""
    _, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())


def may_cover(mask: np.ndarray, below: list[Shape]) -> bool:
    """Return whether all shapes in ``below`` stay visible enough and without holes under ``mask`` (S, S)."""
    for shape in below:
        if not (mask & shape.visible).any():
            continue
        left = shape.visible & ~mask
        if left.sum() < MIN_VISIBLE * shape.full.sum() or has_hole(left):
            return False
    return True


def place_shape(rng: np.random.Generator, size: int, below: list[Shape]) -> Shape | None:
    """Try a few places for a shape of a random category; None if all of them occlude others too much."""
    category = int(rng.integers(len(CATEGORIES)))
    for _ in range(12):
        center, radius = sample_place(rng, size)
        mask = rasterize(corners_of(CATEGORIES[category], center, radius, rng.uniform(0, 2 * math.pi)), size)
        if mask.any() and may_cover(mask, below):
            return Shape(category, mask, mask.copy())
    return None


def draw_crowd(rng: np.random.Generator, image: np.ndarray) -> Shape:
    """Draw 12 to 20 small shapes of one category close together; the crowd includes the region between them."""
    size = image.shape[0]
    category, center = int(rng.integers(len(CATEGORIES))), rng.uniform(0.2, 0.8, 2) * size
    together = np.zeros((size * SUPERSAMPLING,) * 2, bool)
    for _ in range(rng.integers(12, 21)):
        place = center + rng.normal(0, 0.08, 2) * size
        corners = corners_of(
            CATEGORIES[category], place, rng.uniform(*CROWD_RADIUS) * size, rng.uniform(0, 2 * math.pi)
        )
        mask = rasterize(corners, size)
        paint(rng, image, mask, sample_color(rng, category))
        together |= mask
    reach = int(0.1 * size * SUPERSAMPLING) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    region = cv2.morphologyEx(together.astype(np.uint8), cv2.MORPH_CLOSE, kernel).astype(bool)
    return Shape(category, region, region.copy())


def draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Shape], Shape | None]:
    """Draw one image.

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
        paint(rng, image, shape.full, sample_color(rng, shape.category))
        for other in [*shapes, *([crowd] if crowd else [])]:
            other.visible &= ~shape.full
        shapes.append(shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), shapes, crowd


def to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Convert ``mask`` (S, S) to COCO polygons ``[x0, y0, x1, y1, ...]`` in image pixels, without slivers."""
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
    """Convert pixel indices (N, 2) of a supersampled contour to image pixels, and extend it to the image's edge.

    A contour passes through the centers of the outermost pixels. The missing half of a supersampled pixel (1/8 pixel)
    matters only at the border, where a shape must end exactly at the image's edge.
    """
    centers = corners + 0.5
    centers[corners == 0] = 0
    centers[corners == side - 1] = side
    return centers / SUPERSAMPLING


def is_partial(shape: Shape) -> bool:
    """Return whether a part of the shape is occluded or lies beyond the border."""
    full = shape.full
    at_border = full[0].any() or full[-1].any() or full[:, 0].any() or full[:, -1].any()
    return bool(at_border or (shape.visible != full).any())


def without_slivers(mask: np.ndarray) -> np.ndarray:
    """Remove what is narrower than a pixel from ``mask`` (S, S): invisible edges of occluded shapes."""
    kernel = np.ones((SUPERSAMPLING | 1, SUPERSAMPLING | 1), np.uint8)  # an even one would shift the mask
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)


def annotate_shape(shape: Shape, size: int) -> dict[str, Any] | None:
    """Make the COCO annotation of the visible part of a shape; None if only slivers are left."""
    polygons = to_polygons(without_slivers(shape.visible) if is_partial(shape) else shape.visible)
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
    """Make the COCO annotation (uncompressed RLE) of the visible part of a crowd; None if nothing is left."""
    mask = cv2.resize(crowd.visible.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) >= 0.5
    if not mask.any():
        return None
    ys, xs = np.nonzero(mask)
    pixels = mask.ravel(order="F")  # COCO's RLE goes column by column and begins with a run of zeros
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
    """Make a COCO box [x, y, width, height] of its two corners, each (2,)."""
    return [round(float(value), 2) for value in (*low, *(high - low))]


def draw_split(root: Path, split: str, count: int, size: int, seed: int) -> None:
    """Write the images and the JSON of one split under ``root``."""
    (root / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in tqdm(range(1, count + 1), desc=f"shapes {split}", unit="image", leave=False, disable=None):
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        image, shapes, crowd = draw_image(rng, size)
        name = f"{number:06d}.png"
        # write_bytes raises OSError if the disk is full; cv2.imwrite would only return False
        (root / split / name).write_bytes(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        visible = [annotate_shape(shape, size) for shape in shapes] + ([annotate_crowd(crowd, size)] if crowd else [])
        for annotation in filter(None, visible):
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
    """Draw the whole dataset, or nothing if that fails. One of an earlier call with the same arguments is kept.

    Args:
        output: the folder to create; replaced if an earlier call made it with other arguments.
        train, val: number of training and validation images.
        size: side of the square images, in pixels.
        seed: seed of the random generator.
        overwrite: replace a folder that something else made, which is kept as ``<output>.old``.

    Returns:
        Whether it was drawn.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``output`` exists, was made by something else, and ``overwrite`` is False.
    """
    _check_numbers(train, val, size, seed)
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


def _check_numbers(train: int, val: int, size: int, seed: int) -> None:
    if train < 1 or val < 1 or size < 32 or seed < 0:
        raise ValueError(
            f"train={train}, val={val}, size={size}, seed={seed}: expected train and val >= 1, size >= 32, seed >= 0"
        )


def _check_may_replace(target: Path, overwrite: bool) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"{target} exists and was not made by prepare_shapes.py: name another --output, or add --overwrite "
            f"(it is then kept as {target.name}.old)"
        )
    if _old(target).exists():
        raise FileExistsError(f"{_old(target)} exists, so {target} cannot be kept there: move or delete it first")


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def _put_in_place(partial: Path, target: Path, keep_old: bool) -> None:
    """Rename ``partial`` to ``target``; an earlier ``target`` is deleted, or kept beside it as ``<target>.old``."""
    if target.exists():
        if keep_old and (not target.is_dir() or any(target.iterdir())):
            target.rename(_old(target))
        elif target.is_dir():
            shutil.rmtree(target)
    partial.rename(target)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Draw a small COCO-format dataset of simple shapes.")
    parser.add_argument("--output", default="datasets/shapes", help="folder to create (default: %(default)s)")
    parser.add_argument("--train", type=int, default=600, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random generator (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that something else made")
    options = parser.parse_args(arguments)
    try:
        drawn = draw_dataset(**vars(options))
    except (ValueError, OSError) as error:
        print(f"prepare_shapes.py: {error}", file=sys.stderr)
        return 1
    counts = f"{options.train} training and {options.val} validation images"
    print(f"{options.output}: {counts}" + ("" if drawn else " existed already"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
