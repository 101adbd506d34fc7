"""Render the flaws of a dataset as one web page, with examples as images and the statistics of each part."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2_maskrcnn.data.checking import CheckedPart, CheckReport
from d2_maskrcnn.data.flaws.entry_repairs import REPAIRS
from d2_maskrcnn.data.flaws.flaw import SEVERITIES, Flaw
from d2_maskrcnn.data.flaws.schema import is_box
from d2_maskrcnn.data.image_reading import read_display
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.conclusions import about_data
from d2_maskrcnn.inspection.data import DataFindings, inspect_table
from d2_maskrcnn.inspection.page import environment
from d2_maskrcnn.structures.masks import decode_segmentation, mask_to_polygons
from d2_maskrcnn.visualization.palette import GREEN, ORANGE
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_points, raster
from d2_maskrcnn.weights.atomic import write_output

EXAMPLES = 6  # images shown per kind of flaw
SHOWN_IDS = 200  # listed per kind of flaw
THUMBNAIL = 320  # longer side of an example in pixels
_CONTEXT = 0.2  # shown on each side of an object, relative to its longer side
_LEAST = 0.35  # of the image's longer side that is shown at least
_LIMIT = 3.0  # coordinates are drawn up to this multiple of the image's longer side

Entry = dict[str, Any]


@dataclass(frozen=True)
class ShownFlaw:
    """A flaw with images of its first entries and with the ids of the entries.

    Attributes:
        examples: (H, W, 3) uint8 RGB and a caption each.
        ids: of all entries, up to ``SHOWN_IDS``.
    """

    flaw: Flaw
    examples: list[tuple[np.ndarray, str]]
    ids: list[str]

    @property
    def repairable(self) -> bool:
        """Whether :func:`~d2_maskrcnn.data.fix` can repair it, at least in some entries."""
        return self.flaw.kind in REPAIRS


@dataclass
class Page:
    """The content of the page: ``report`` in its template."""

    about: dict[str, str]
    parts: list[tuple[CheckedPart, list[ShownFlaw], DataFindings]]
    title: str = "Flaws of a dataset"
    severities: tuple[str, ...] = field(default=SEVERITIES)


def write_flaws_page(report: CheckReport, path: Path) -> None:
    """Write the page, which needs no other file and no network.

    Raises:
        UserError: the file cannot be written.
    """
    about = {"datasets": ", ".join(part.name for part in report.parts)}
    about |= {f"{each}s": f"{report.count(each)} kinds" for each in SEVERITIES}
    parts = [
        (part, [_show(part, each) for each in part.flaws], inspect_table(report.cfg, part.name, part.findings.table))
        for part in report.parts
    ]
    html = environment().get_template("flaws.html.jinja").render(report=Page(about, parts), about_data=about_data)
    write_output(path, html)


def _show(part: CheckedPart, flaw: Flaw) -> ShownFlaw:
    entries = part.content.data[flaw.entries] if flaw.entries else []
    flawed = [entries[position] for position in flaw.positions.tolist()]
    ids = [str(each.get("id")) if isinstance(each, dict) else "-" for each in flawed[:SHOWN_IDS]]
    examples: list[tuple[np.ndarray, str]] = []
    for entry in flawed[: 3 * EXAMPLES]:
        if flaw.entries in ("images", "annotations") and isinstance(entry, dict) and len(examples) < EXAMPLES:
            examples += _example(part, flaw.entries, entry)
    return ShownFlaw(flaw, examples, ids)


def _example(part: CheckedPart, entries: str, entry: Entry) -> list[tuple[np.ndarray, str]]:
    """Draw an image or annotation with its caption; nothing if the image cannot be read."""
    content = part.content
    images = [entry] if entries == "images" else content.entries_with("images", "id", entry.get("image_id"))
    root, name = content.image_root, images[0].get("file_name") if images else None
    if root is None or not isinstance(name, str):
        return []
    try:
        pixels = read_display(root / name)
    except UserError:
        return []
    is_annotation = entries == "annotations"
    annotations = [entry] if is_annotation else content.entries_with("annotations", "image_id", entry.get("id"))
    scene = _scene(pixels, annotations)
    caption = f"id {entry.get('id')}{' in ' if is_annotation else ': '}{name}"
    return [(raster(_zoom(scene) if is_annotation else scene, THUMBNAIL), caption)]


def _scene(pixels: np.ndarray, annotations: list[Entry]) -> Scene:
    """Make a scene of the usable polygons and boxes of annotations in the upright image (H, W, 3) uint8 RGB."""
    height, width = pixels.shape[:2]
    limit = _LIMIT * max(height, width)
    boxes = [np.array(each["bbox"], dtype=np.float64) for each in annotations if is_box(each.get("bbox"))]
    corners = [np.concatenate([box[:2], box[:2] + box[2:]]) for box in boxes if np.isfinite(box).all()]
    rectangles = [Mark([box_points(np.clip(box, -limit, limit))]) for box in corners]
    masks = [Mark(polygons) for each in annotations if (polygons := _polygons(each.get("segmentation"), limit))]
    layers = [Layer("masks", masks, color=GREEN, filled=True), Layer("boxes", rectangles, color=ORANGE)]
    return Scene("example", "", pixels, (height, width), layers)


def _polygons(segmentation: Any, limit: float) -> list[np.ndarray]:
    """Return the polygons of a segmentation as (n, 2) arrays within +-limit, without those that cannot be drawn."""
    try:
        if isinstance(segmentation, dict):
            height, width = segmentation["size"]
            return mask_to_polygons(decode_segmentation(segmentation, height, width))
        arrays = [np.array(polygon[: len(polygon) // 2 * 2], dtype=np.float64) for polygon in segmentation or []]
    except (UserError, KeyError, TypeError, ValueError, OverflowError):  # whatever the flaw of the segmentation is
        return []
    return [np.clip(each.reshape(-1, 2), -limit, limit) for each in arrays if each.size and np.isfinite(each).all()]


def _zoom(scene: Scene) -> Scene:
    """Show the surroundings of a scene's marks, gray where they leave the image."""
    points = [polygon for layer in scene.layers for mark in layer.marks for polygon in mark.points]
    if not points:
        return scene
    height, width = scene.frame
    low, high = np.concatenate(points).min(axis=0), np.concatenate(points).max(axis=0)
    side = max((high - low).max() * (1 + 2 * _CONTEXT), _LEAST * max(height, width))
    start = np.floor(np.clip((low + high - side) / 2, (-width, -height), (width, height))).astype(int)
    stop = np.minimum(start + int(np.ceil(side)), (2 * width, 2 * height))
    if (low >= 0).all() and (high <= (width, height)).all():  # inside: no gray border
        start, stop = np.maximum(start, 0), np.minimum(stop, (width, height))
    scale = np.array([scene.image.shape[1] / width, scene.image.shape[0] / height])
    a, b = (np.round(corner * scale).astype(int) for corner in (start, stop))
    canvas = np.full((max(b[1] - a[1], 1), max(b[0] - a[0], 1), 3), 128, dtype=np.uint8)
    x0, y0 = np.maximum(a, 0)
    x1, y1 = np.minimum(b, scene.image.shape[1::-1])
    if x0 < x1 and y0 < y1:
        canvas[y0 - a[1] : y1 - a[1], x0 - a[0] : x1 - a[0]] = scene.image[y0:y1, x0:x1]
    layers = [
        Layer(
            each.name, [Mark([p - start for p in mark.points]) for mark in each.marks], each.color, filled=each.filled
        )
        for each in scene.layers
    ]
    return Scene(scene.name, scene.title, canvas, (int(stop[1] - start[1]), int(stop[0] - start[0])), layers)
