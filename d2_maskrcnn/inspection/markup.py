"""Pieces of a web page: tables, charts, embedded images, and scenes as SVG with layers to switch on and off."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from d2_maskrcnn.visualization.palette import class_color, to_hex
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene

_QUALITY = 85
DASHES = {"solid": "", "dotted": "1.5 3", "dashed": "6 4"}
LABEL_UNITS = 3.0  # height of a label on a phone, in per cent of the image's longer side; less on a desk


def escape(value: object) -> str:
    """Text for HTML, also inside attributes."""
    return html.escape(str(value), quote=True)


def data_uri(image: np.ndarray, quality: int = _QUALITY) -> str:
    """(H, W, 3) uint8 RGB as the address of a JPEG that is its own content."""
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def image(image: np.ndarray, alt: str, width: int | None = None) -> str:
    """An image that a click, or Enter, shows large."""
    height, own_width = image.shape[:2]
    style = f' style="width:{width}px"' if width else ""
    return (
        f'<button class="enlarge" type="button" title="Show large"><img src="{data_uri(image)}" alt="{escape(alt)}" '
        f'width="{own_width}" height="{height}"{style}></button>'
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], raw: Sequence[int] = (), css: str = "") -> str:
    """A table; the first column heads its row, the columns in ``raw`` are HTML already, numbers stand to the right."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(f"<tr>{''.join(_cell(i, value, i in raw) for i, value in enumerate(row))}</tr>" for row in rows)
    content = f'<table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{content}</div>'


def _cell(column: int, value: object, raw: bool) -> str:
    text = str(value) if raw else escape(number(value))
    if column == 0:
        return f'<th scope="row">{text}</th>'
    return f'<td class="n">{text}</td>' if isinstance(value, (int, float)) and not raw else f"<td>{text}</td>"


def number(value: object) -> str:
    """A value for people: four digits, thousands apart, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share in [0, 1] as per cent, a dash for None."""
    return "-" if value is None else f"{value:.0%}"


def flags(words: Sequence[str]) -> str:
    """Warnings as a list, or nothing."""
    return "".join(f'<span class="flag">{escape(word)}</span>' for word in words)


def bars(edges: Sequence[float], counts: Sequence[int], label: str, size: tuple[int, int] = (160, 36)) -> str:
    """A histogram as a small SVG in the colour of the text around it; the heights are proportional to the counts."""
    width, height = size
    top = max(max(counts, default=0), 1)
    step = width / max(len(counts), 1)
    points = [f"M0 {height}"]
    for index, count in enumerate(counts):
        y = height - height * count / top
        points.append(f"L{index * step:.1f} {y:.1f}L{(index + 1) * step:.1f} {y:.1f}")
    points.append(f"L{width} {height}Z")
    text = f"{label}: {number(float(edges[0]))} to {number(float(edges[-1]))}" if len(edges) else label
    return (
        f'<svg class="bars" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(text)}"><title>{escape(text)}</title><path d="{"".join(points)}"/></svg>'
    )


def named_bars(values: dict[str, int], limit: int = 30) -> str:
    """Horizontal bars with names, the largest first, the rest added up."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    rest = ordered[limit:]
    shown = ordered[:limit] + ([(f"{len(rest)} others", sum(v for _, v in rest))] if rest else [])
    top = max((value for _, value in shown), default=1) or 1
    rows = "".join(
        f'<div class="bar"><span>{escape(name)}</span><i style="width:{100 * value / top:.1f}%"></i>'
        f"<b>{value:,}</b></div>"
        for name, value in shown
    )
    return f'<div class="bar-chart">{rows}</div>'


def image_definition(identity: str, image: np.ndarray) -> str:
    """The image once, for all viewers that show it by :func:`viewer`."""
    height, width = image.shape[:2]
    return (
        f'<svg class="definition" width="0" height="0" aria-hidden="true"><defs><image id="{identity}" width="{width}" '
        f'height="{height}" href="{data_uri(image)}" preserveAspectRatio="none"/></defs></svg>'
    )


def viewer(scene: Scene, identity: str, image: str) -> str:
    """A scene that can be zoomed and whose layers and classes can be switched.

    Args:
        identity: of the element, once on the page. image: identity of its :func:`image_definition`.
    """
    height, width = scene.frame
    scale = (width / scene.image.shape[1], height / scene.image.shape[0])
    unit = max(height, width) / 100
    layers = "".join(_layer(i, layer, unit) for i, layer in enumerate(scene.layers))
    marks = sum(len(layer.marks) for layer in scene.layers)
    return (
        f'<figure class="viewer" id="{identity}" style="max-width:{max(34 * width / height, 26) + 1.6:.1f}rem">'
        f"<figcaption>{escape(scene.title)}</figcaption>"
        f'<div class="tools" role="group" aria-label="Layers">{_layer_switches(scene)}</div>{_class_switches(scene)}'
        f'<div class="stage" tabindex="0" role="group" aria-label="{escape(scene.title)}: {marks} marks. Plus and '
        'minus zoom, arrow keys move, 0 resets.">'
        f'<svg viewBox="0 0 {width} {height}" style="--unit:{unit:.4g}px" data-width="{width}" '
        f'data-height="{height}" role="img" aria-label="{escape(scene.title)}"><use href="#{image}" '
        f'transform="scale({scale[0]:.6g} {scale[1]:.6g})"/>{layers}</svg></div>'
        '<div class="zoom"><button type="button" data-zoom="in" aria-label="Zoom in">+</button>'
        '<button type="button" data-zoom="out" aria-label="Zoom out">&minus;</button>'
        '<button type="button" data-zoom="reset">Whole image</button></div></figure>'
    )


def _layer_switches(scene: Scene) -> str:
    return "".join(
        f'<label><input type="checkbox" data-layer="{i}"{" checked" if layer.shown else ""}>'
        f'<i class="key {layer.style}" style="--c:{to_hex(layer.color) if layer.color else "currentColor"}"></i>'
        f"{escape(layer.title)}</label>"
        for i, layer in enumerate(scene.layers)
    )


def _class_switches(scene: Scene) -> str:
    classes = scene.classes()
    if not classes:
        return ""
    names = [scene.class_names[c] if c < len(scene.class_names) else f"class {c}" for c in classes]
    # Where every layer has a colour of its own, no mark shows its class's.
    coloured = any(layer.color is None and layer.marks for layer in scene.layers)
    keys = [f'<i class="key" style="--c:{to_hex(class_color(c))}"></i>' if coloured else "" for c in classes]
    switches = "".join(
        f'<label><input type="checkbox" data-class="{c}" checked>{key}{escape(name)}</label>'
        for c, key, name in zip(classes, keys, names, strict=True)
    )
    return f'<div class="tools classes" role="group" aria-label="Classes">{switches}</div>'


def _layer(index: int, layer: Layer, unit: float) -> str:
    dash = f' stroke-dasharray="{DASHES[layer.style]}"' if DASHES[layer.style] else ""
    hidden = "" if layer.shown else ' style="display:none"'
    colour = f' stroke="{to_hex(layer.color)}" fill="{to_hex(layer.color)}"' if layer.color else ""
    css = ' class="filled"' if layer.filled else ""
    places = _label_places(layer.marks, unit * LABEL_UNITS)
    marks = "".join(_mark(layer, mark, place) for mark, place in zip(layer.marks, places, strict=True))
    return f'<g data-layer="{index}"{css}{colour}{dash}{hidden}>{marks}</g>'


def _label_places(marks: Sequence[Mark], size: float) -> list[tuple[float, float] | None]:
    """Where each mark's label starts (x, y of its base line): above its left corner, or lower where another one is.

    A label that finds no free place within six lines is left out; hovering still tells it.
    """
    taken: list[tuple[float, float, float]] = []  # left, right, base line
    places: list[tuple[float, float] | None] = []
    for mark in marks:
        place = None
        if mark.label and mark.points:
            x, y = (float(value) for value in mark.points[0].min(axis=0))
            width = 0.6 * size * len(mark.label)
            for line in range(6):
                base = max(y - 0.2 * size, size) + line * 1.1 * size
                if all(x > right or x + width < left or abs(base - other) > size for left, right, other in taken):
                    place = (x, base)
                    taken.append((x, x + width, base))
                    break
        places.append(place)
    return places


def _mark(layer: Layer, mark: Mark, place: tuple[float, float] | None) -> str:
    end = "" if mark.line else "Z"
    path = "".join("M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in points) + end for points in mark.points)
    colour = to_hex(class_color(mark.class_index))
    own = "" if layer.color else f' stroke="{colour}" fill="{colour}"'
    group = "" if mark.class_index is None else f' data-class="{mark.class_index}"'
    title = f"<title>{escape(mark.text)}</title>" if mark.text else ""
    label = "" if place is None else f'<text x="{place[0]:.4g}" y="{place[1]:.4g}">{escape(mark.label)}</text>'
    return f'<g{group}{own}>{title}<path d="{path}"/>{label}</g>'


def fold(title: str, content: str, opened: bool = False, extra: str = "") -> str:
    """A part that opens and closes."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}{extra}</summary>{content}</details>"


def plain(value: Any) -> Any:
    """``value`` for JSON: NumPy's scalars and arrays, tuples as Python's; what is not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value
