"""Write the report: ``report.html``, which needs no other file, its numbers as ``report.json``, its figures as PNGs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.data import DataFindings, draw_data
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.inspection.page import render
from d2_maskrcnn.inspection.sections import SECTIONS, Section
from d2_maskrcnn.inspection.weights import WeightFindings, draw_overview
from d2_maskrcnn.visualization.figures import png
from d2_maskrcnn.visualization.scene import Scene, draw_scene
from d2_maskrcnn.weights import atomic_write_text

PARTS = tuple(section.name for section in SECTIONS)


@dataclass
class Report:
    """The content of a report; everything but ``about`` is optional.

    Attributes:
        about: name -> value of what was inspected, shown at the top.
        observations: one per image.
        weights, data: sections of their own.
        samples: augmented images of the dataset.
        threshold: score from which detections count in the final result.
        parts: sections of each image, of ``PARTS``.
        title: of the page.
        notes: warnings, shown at the top.
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

    def sections(self) -> list[Section]:
        """Return the sections of each image."""
        return [section for section in SECTIONS if section.name in self.parts]


def as_dict(report: Report) -> dict[str, Any]:
    """Return every number that the report shows, as JSON values; numbers that are not finite become None."""
    numbers: dict[str, Any] = {"about": report.about, "threshold": report.threshold}
    numbers["images"] = [_image_numbers(report, observation) for observation in report.observations]
    if report.weights is not None:
        numbers["weights"] = report.weights.as_dict()
    if report.data is not None:
        numbers["data"] = report.data.as_dict()
    return _jsonable(numbers)


def _image_numbers(report: Report, observation: Observation) -> dict[str, Any]:
    training = observation.training
    return {
        "name": observation.name,
        "file_name": observation.path,
        "height": observation.output_size[0],
        "width": observation.output_size[1],
        "network_height": observation.image.shape[0],
        "network_width": observation.image.shape[1],
        "has_ground_truth": observation.ground_truth is not None,
        "seconds": observation.seconds,
        "problem": observation.problem,
        "losses": {} if training is None else {name: float(value) for name, value in training.losses.items()},
        **{section.name: section.numbers(observation, report.threshold) for section in report.sections()},
    }


def _jsonable(value: Any) -> Any:
    """Convert NumPy values and tuples to Python's, round to seven digits, and replace non-finite numbers by None."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value


def write_report(report: Report, folder: str | Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``figures/*.png``; an earlier report in the folder is replaced.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: the folder cannot be created or written.
    """
    folder = Path(folder)
    page = render(report)
    try:
        figures = folder / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        for name in _earlier_figures(folder):
            (figures / name).unlink(missing_ok=True)
        names = []
        for name, content in figure_files(report):
            (figures / name).write_bytes(content)
            names.append(name)
        numbers = {**as_dict(report), "figures": names}
        atomic_write_text(folder / "report.json", json.dumps(numbers, indent=1, allow_nan=False))
        atomic_write_text(folder / "report.html", page)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror}): name another folder") from error
    return folder / "report.html"


def _earlier_figures(folder: Path) -> list[str]:
    """Return the figures of the report that this one replaces, which may have had more images."""
    try:
        names = json.loads((folder / "report.json").read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # there is no report, or another program's file
    return [name for name in names if isinstance(name, str) and name.endswith(".png") and Path(name).name == name]


def figure_files(report: Report) -> Iterator[tuple[str, bytes]]:
    """Draw every figure; yield its file name and its PNG file."""
    hidden = True if len(report.observations) < 2 else None  # None: hidden where there is no terminal
    for index, seen in enumerate(
        tqdm(report.observations, "Figures", unit="image", disable=hidden, dynamic_ncols=True)
    ):
        for section in report.sections():
            for name, content in section.figures(seen, report.threshold).items():
                yield f"{index + 1}_{_file_name(Path(seen.path).stem)}_{section.name}_{_file_name(name)}.png", content
    if report.weights is not None:
        yield "weights.png", png(draw_overview(report.weights))
    if report.data is not None:
        yield "data.png", png(draw_data(report.data))
    for index, scene in enumerate(report.samples):
        yield f"data_sample_{index + 1}.png", png(draw_scene(scene))


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:100]
