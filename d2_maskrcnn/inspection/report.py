"""The report: ``report.html``, which needs nothing but itself, its numbers as ``report.json``, its figures as PNG."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection import activations, anchors, boxes, masks, result, sections
from d2_maskrcnn.inspection.data import DataFindings, draw_data
from d2_maskrcnn.inspection.markup import escape, image_definition, plain, viewer
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.inspection.weights import WeightFindings, draw_overview
from d2_maskrcnn.visualization.figures import encode_png, png
from d2_maskrcnn.visualization.scene import Scene, draw_scene
from d2_maskrcnn.weights import atomic_write_text

PARTS = ("result", "anchors", "boxes", "masks", "activations")
TITLES = {
    "result": "The final result",
    "anchors": "Anchors and proposals",
    "boxes": "Box refinement",
    "masks": "Masks",
    "activations": "Activations",
}
_ASSETS = Path(__file__).parent / "templates"


@dataclass
class Report:
    """What a report is made of; everything but ``about`` may be missing.

    about: what was looked at and with what: name -> text. threshold: score from which detections count in the result.
    parts: which of ``PARTS`` are shown of each image. samples: augmented images of the dataset.
    """

    about: dict[str, str]
    observations: Sequence[Observation] = ()
    weights: WeightFindings | None = None
    data: DataFindings | None = None
    samples: Sequence[Scene] = ()
    threshold: float = 0.5
    parts: Sequence[str] = PARTS
    title: str = "Mask R-CNN, step by step"
    notes: list[str] = field(default_factory=list)


def as_dict(report: Report) -> dict[str, Any]:
    """Every number that the report shows."""
    numbers: dict[str, Any] = {"about": report.about, "threshold": report.threshold}
    numbers["images"] = [_image_numbers(report, observation) for observation in report.observations]
    if report.weights is not None:
        numbers["weights"] = report.weights.as_dict()
    if report.data is not None:
        numbers["data"] = report.data.as_dict()
    return plain(numbers)


def _image_numbers(report: Report, observation: Observation) -> dict[str, Any]:
    parts: dict[str, Callable[[], Any]] = {
        "anchors": lambda: anchors.inspect_anchors(observation).as_dict(),
        "boxes": lambda: boxes.inspect_boxes(observation).as_dict(),
        "masks": lambda: [finding.as_dict() for finding in masks.inspect_masks(observation)],
        "activations": lambda: [vars(layer) for layer in activations.inspect_activations(observation)],
        "result": lambda: result.inspect_result(observation, report.threshold).as_dict(),
    }
    return {
        "name": observation.name,
        "height": observation.output_size[0],
        "width": observation.output_size[1],
        "network_height": observation.image.shape[0],
        "network_width": observation.image.shape[1],
        "annotated": observation.truth is not None,
        "seconds": observation.seconds,
        "problem": observation.problem,
        "losses": {} if observation.training is None else {k: float(v) for k, v in observation.training.losses.items()},
        **{name: parts[name]() for name in report.parts},
    }


def write_report(report: Report, folder: str | Path) -> Path:
    """Writes ``report.html``, ``report.json`` and, under ``figures/``, PNGs; a report that was there is replaced.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: the folder cannot be made or written, or matplotlib is missing.
    """
    folder = Path(folder)
    page = html(report)
    try:
        figures = folder / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        for name in _figures_of_before(folder):
            (figures / name).unlink(missing_ok=True)
        files = dict(figure_files(report))
        for name, content in files.items():
            (figures / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}): name another folder") from error
    numbers = {**as_dict(report), "figures": list(files)}
    atomic_write_text(folder / "report.json", json.dumps(numbers, indent=1, allow_nan=False))
    atomic_write_text(folder / "report.html", page)
    return folder / "report.html"


def _figures_of_before(folder: Path) -> list[str]:
    """The figures of a report that this one replaces, which may have had more images."""
    try:
        names = json.loads((folder / "report.json").read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none, or no report of ours
    return [name for name in names if isinstance(name, str) and name.endswith(".png") and Path(name).name == name]


def figure_files(report: Report) -> list[tuple[str, bytes]]:
    """(name, PNG) of every figure."""
    files: list[tuple[str, bytes]] = []
    number = len(report.observations)
    bar = tqdm(report.observations, "Figures", unit="image", disable=None if number > 1 else True, dynamic_ncols=True)
    for index, observation in enumerate(bar):
        stem = f"{index + 1}_{Path(observation.name).stem}"
        for part in report.parts:
            files += [
                (f"{stem}_{part}_{name}.png", png(figure)) for name, figure in _figures(report, observation, part)
            ]
        if "activations" in report.parts:
            for name, grid in activations.channel_grids(observation).items():
                files.append((f"{stem}_activations_{_file_name(name)}.png", encode_png(grid)))
    if report.weights is not None:
        files.append(("weights.png", png(draw_overview(report.weights))))
    if report.data is not None:
        files.append(("data.png", png(draw_data(report.data))))
    files += [(f"data_sample_{i + 1}.png", png(draw_scene(scene))) for i, scene in enumerate(report.samples)]
    return files


def _figures(report: Report, observation: Observation, part: str) -> list[tuple[str, Any]]:
    drawers: dict[str, Callable[[], dict[str, Any]]] = {
        "anchors": lambda: anchors.draw_anchors(observation),
        "boxes": lambda: boxes.draw_boxes(observation),
        "masks": lambda: masks.draw_masks(observation),
        "result": lambda: result.draw_result(observation, report.threshold),
    }
    return list(drawers[part]().items()) if part in drawers else []


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def html(report: Report) -> str:
    """The whole page."""
    contents, body = [], []
    for index, observation in enumerate(report.observations):
        links, content = _image(report, observation, f"p{index + 1}")
        contents.append(_entry(f"p{index + 1}", observation.name, links))
        body.append(content)
    if report.weights is not None:
        contents.append(_entry("weights", "Weights"))
        body.append(_section("weights", "Weights", sections.weight_section(report.weights)))
    if report.data is not None:
        contents.append(_entry("data", "Data"))
        body.append(_section("data", f"Data: {report.data.name}", _data(report)))
    about = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.about.items())
    notes = "".join(f'<p><span class="flag">{escape(note)}</span></p>' for note in report.notes)
    css, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(report.title)}</title><style>{css}</style></head><body>"
        f'<div class="page"><nav aria-label="Contents" id="contents"><ol>{"".join(contents)}</ol></nav><main>'
        f'<div class="top"><h1>{escape(report.title)}</h1>'
        '<button class="theme" type="button">Light / dark</button></div>'
        f'<dl class="about">{about}</dl>{notes}{"".join(body)}</main></div><a class="up" href="#contents">Contents</a>'
        '<dialog aria-label="Image"><p></p>'
        '<img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">'
        f'<form method="dialog"><button>Close</button></form></dialog><script>{script}</script></body></html>'
    )


def _entry(identity: str, title: str, children: str = "") -> str:
    inner = f"<ol>{children}</ol>" if children else ""
    return f'<li><a href="#{identity}">{escape(title)}</a>{inner}</li>'


def _section(identity: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{identity}"><h2 id="{identity}">{escape(title)}</h2>{content}</section>'


def _image(report: Report, observation: Observation, key: str) -> tuple[str, str]:
    """Links and content of one image."""
    makers: dict[str, Callable[[], str]] = {
        "result": lambda: sections.result_section(observation, key, report.threshold),
        "anchors": lambda: sections.anchor_section(observation, key),
        "boxes": lambda: sections.box_section(observation, key),
        "masks": lambda: sections.mask_section(observation, key),
        "activations": lambda: sections.activation_section(observation, key),
    }
    height, width = observation.output_size
    intro = (
        f'<p class="soft">{width}x{height} pixels, {observation.image.shape[1]}x{observation.image.shape[0]} for '
        f"the network; {observation.seconds:.2f} s.</p>{image_definition(f'{key}-image', observation.image)}"
    )
    if observation.training is not None and observation.training.losses:
        losses = ", ".join(f"{name} {float(value):.3f}" for name, value in observation.training.losses.items())
        intro += f'<p class="soft">Losses on this image: {escape(losses)}.</p>'
    if observation.problem:
        intro += f'<p><span class="flag">No losses: {escape(observation.problem)}</span></p>'
    parts = [name for name in PARTS if name in report.parts]
    content = "".join(f'<h3 id="{key}-{name}">{TITLES[name]}</h3>{makers[name]()}' for name in parts)
    links = "".join(_entry(f"{key}-{name}", TITLES[name]) for name in parts)
    return links, _section(key, observation.name, intro + content)


def _data(report: Report) -> str:
    assert report.data is not None
    definitions = [image_definition(f"sample-{i}", scene.image) for i, scene in enumerate(report.samples)]
    viewers = [viewer(scene, f"sample-view-{i}", f"sample-{i}") for i, scene in enumerate(report.samples)]
    return "".join(definitions) + sections.data_section(report.data, viewers)
