"""Render the report's web page, which needs no other file; the HTML is in ``templates/``."""

import base64
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from d2_maskrcnn.errors import printable
from d2_maskrcnn.inspection import data
from d2_maskrcnn.inspection.conclusions import about_data
from d2_maskrcnn.inspection.data import DataFindings
from d2_maskrcnn.inspection.statistics import histogram, quantiles
from d2_maskrcnn.inspection.weights import by_group
from d2_maskrcnn.visualization.labels import choose_places
from d2_maskrcnn.visualization.pages import page_environment
from d2_maskrcnn.visualization.palette import class_color, to_hex
from d2_maskrcnn.visualization.scene import Mark, Scene

if TYPE_CHECKING:
    from d2_maskrcnn.inspection.report import Report

JPEG_QUALITY = 85
DASHES = {"solid": "", "dotted": "1.5 3", "dashed": "6 4"}  # SVG stroke-dasharray
MAX_BARS = 30
# Mean width of a character, height of a line and depth of its baseline, relative to the height of the text.
_LABEL_ASPECT, _LINE_HEIGHT, _DESCENT = 0.6, 1.1, 0.2


def render(report: "Report") -> str:
    """Render the whole page."""
    images = [
        {
            "key": f"p{index + 1}",
            "seen": seen,
            "sections": [(part, part.context(seen, report.threshold)) for part in report.sections()],
        }
        for index, seen in enumerate(report.observations)
    ]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            images=images,
            groups=by_group(report.weights) if report.weights else {},
            data_conclusions=about_data(report.data) if report.data else [],
        )
    )


@cache
def environment() -> Environment:
    """Return the templates with the filters and functions that they use."""
    environment = page_environment("d2_maskrcnn.inspection", ["jinja2.ext.do"])
    environment.filters |= {
        "data_uri": data_uri,
        "readable": readable,
        "percent": percent,
        "hex": to_hex,
        "svg_path": svg_path,
        "bar_path": bar_path,
        "curve_path": curve_path,
        "largest": largest,
        "printable": printable,
    }
    environment.globals |= {
        "class_color": class_color,
        "class_name": class_name,
        "label_places": label_places,
        "dashes": DASHES,
        "histograms": data_histograms,
        "good_iou": data.GOOD_IOU,
    }
    return environment


def data_uri(image: np.ndarray) -> str:
    """Encode (H, W, 3) uint8 RGB as the ``data:`` address of a JPEG file."""
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def readable(value: Any) -> str:
    """Format a value for a table: four digits, thousands separated, a dash for None; markup stays as it is."""
    if value is None:
        return "-"
    if isinstance(value, Markup):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return printable(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Format a share in [0, 1] as a percentage, a dash for None."""
    return "-" if value is None else f"{value:.0%}"


def svg_path(mark: Mark) -> str:
    """Return the data of an SVG path with the mark's shape."""
    end = "" if mark.line else "Z"
    return "".join("M" + "L".join(f"{x:.5g} {y:.5g}" for x, y in points) + end for points in mark.points)


def bar_path(counts: Sequence[int], width: int, height: int) -> str:
    """Return the data of an SVG path with the bars of a histogram."""
    top, step = max(max(counts, default=0), 1), width / max(len(counts), 1)
    points = [f"M0 {height}"]
    for index, count in enumerate(counts):
        y = height - height * count / top
        points.append(f"L{index * step:.1f} {y:.1f}L{(index + 1) * step:.1f} {y:.1f}")
    return "".join([*points, f"L{width} {height}Z"])


def curve_path(values: Sequence[float], width: int, height: int) -> str:
    """Return the data of an SVG path through evenly spaced values in [0, 1]."""
    step = width / max(len(values) - 1, 1)
    return "M" + "L".join(f"{index * step:.1f} {height * (1 - value):.1f}" for index, value in enumerate(values))


def largest(values: dict[str, int], limit: int = MAX_BARS) -> list[tuple[str, int]]:
    """Sort counts, the largest first, and add up those beyond ``limit``."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    rest = ordered[limit:]
    return ordered[:limit] + ([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])


def class_name(scene: Scene, index: int) -> str:
    """Return the name of one of the scene's classes."""
    return scene.class_names[index] if index < len(scene.class_names) else f"class {index}"


def label_places(scene: Scene, marks: Sequence[Mark], size: float) -> list[tuple[float, float] | None]:
    """Choose the places of labels of the height ``size``, in the scene's coordinates.

    Returns:
        For each mark the start (x, y) of its label's baseline, or None if it has no label or there is no place.
    """
    labeled = [index for index, mark in enumerate(marks) if mark.label and mark.points]
    corners = [marks[index].points[0] for index in labeled]
    boxes = np.array([[*points.min(axis=0), *points.max(axis=0)] for points in corners]).reshape(-1, 4)

    def size_of(number: int) -> tuple[int, int]:
        width = int(np.ceil(_LABEL_ASPECT * size * len(marks[labeled[number]].label)))
        return int(np.ceil(_LINE_HEIGHT * size)), min(width, scene.frame[1])

    places: list[tuple[float, float] | None] = [None] * len(marks)
    for number, (x0, _, _, y1) in choose_places(boxes, size_of, scene.frame):
        places[labeled[number]] = (x0, y1 - _DESCENT * size)
    return places


def data_histograms(findings: DataFindings) -> list[dict[str, Any]]:
    """Make the histograms of the data section."""
    charts = []
    for title, values, unit in (
        ("Square root of the box area", findings.sqrt_areas, "pixels"),
        ("Height / width", np.log2(findings.ratios), "log2"),
        ("Objects per image", findings.objects_per_image, "objects"),
        ("IoU with the best anchor shape", findings.best_anchor_iou, "IoU"),
    ):
        if len(values):
            edges, counts = histogram(values, data.BINS)
            charts.append({"title": title, "unit": unit, "edges": edges, "counts": counts, **quantiles(values)})
    return charts
