"""Render the report's web page, which needs no other file; the HTML is in ``templates/``."""

import base64
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from d2_maskrcnn.errors import printable
from d2_maskrcnn.inspection import data
from d2_maskrcnn.inspection.conclusions import about_data
from d2_maskrcnn.inspection.data import DataFindings
from d2_maskrcnn.inspection.statistics import histogram, quantiles
from d2_maskrcnn.inspection.weights import by_group
from d2_maskrcnn.visualization.labels import ALWAYS_SHOWN, MAX_COVERAGE
from d2_maskrcnn.visualization.palette import THEMES, class_color, to_hex
from d2_maskrcnn.visualization.scene import Mark, Scene

if TYPE_CHECKING:
    from d2_maskrcnn.inspection.report import Report

JPEG_QUALITY = 85
DASHES = {"solid": "", "dotted": "1.5 3", "dashed": "6 4"}  # SVG stroke-dasharray
MAX_BARS = 30
_LABEL_ASPECT = 0.6  # mean width of a character relative to its height
_LABEL_LINES = 6  # places that are tried for a label, one below the other


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
    environment = Environment(
        loader=PackageLoader("d2_maskrcnn.inspection"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.do"],
    )
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
        "themes": THEMES,
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
    """Place labels above the top left corners of their marks, or lower where other labels are.

    In crowded scenes labels are thinned, as :class:`~d2_maskrcnn.visualization.labels.LabelPainter` does.

    Args:
        size: height of a label in the scene's coordinates.

    Returns:
        For each mark the start (x, y) of its label's baseline, or None if it has no label or there is no place.
    """
    taken: list[tuple[float, float, float]] = []  # left, right, baseline
    places: list[tuple[float, float] | None] = []
    covered = 0.0
    for mark in marks:
        places.append(None)
        if not mark.label or not mark.points:
            continue
        (x, y), corner = mark.points[0].min(axis=0).tolist(), mark.points[0].max(axis=0)
        width = _LABEL_ASPECT * size * len(mark.label)
        if len(taken) >= ALWAYS_SHOWN:
            of_mark = float((corner[0] - x) * (corner[1] - y))
            if width * size > of_mark or covered + width * size > MAX_COVERAGE * scene.frame[0] * scene.frame[1]:
                continue
        for line in range(_LABEL_LINES):
            base = max(y - 0.2 * size, size) + line * 1.1 * size
            if all(x > other[1] or x + width < other[0] or abs(base - other[2]) > size for other in taken):
                places[-1] = (x, base)
                taken.append((x, x + width, base))
                covered += width * size
                break
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
