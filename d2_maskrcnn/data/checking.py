"""Check and repair datasets of any format: the public functions over :mod:`d2_maskrcnn.data.flaws`."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data.coco.writing import write_coco_json
from d2_maskrcnn.data.flaws.find_flaws import Findings, Purpose, find_flaws
from d2_maskrcnn.data.flaws.flaw import SEVERITIES, Flaw
from d2_maskrcnn.data.flaws.loading import Content, check_dropped, load_contents
from d2_maskrcnn.data.flaws.repair import repair
from d2_maskrcnn.data.flaws.train_and_val import check_parts
from d2_maskrcnn.data.formats.dataset import Dataset
from d2_maskrcnn.errors import UserError, printable
from d2_maskrcnn.weights.atomic import write_output
from detectron2.config import CfgNode


@dataclass(frozen=True)
class CheckedPart:
    """One part of a dataset, such as its training images, and its flaws.

    Attributes:
        content: what was checked.
        findings: the flaws, the most severe first, and what was read to find them.
        purpose: what the part is needed for.
    """

    content: Content = field(repr=False)
    findings: Findings = field(repr=False)
    purpose: Purpose

    @property
    def name(self) -> str:
        """The file, folder or registered name."""
        return self.content.name

    @property
    def flaws(self) -> list[Flaw]:
        """The flaws, the most severe first."""
        return self.findings.flaws

    def as_dict(self) -> dict[str, Any]:
        """Return contents and flaws as JSON values, with the ids of all flawed entries."""
        table = self.findings.table
        counts = table.objects_per_category().tolist()
        return {
            "name": self.name,
            "split": self.content.split,
            "image_root": None if self.content.image_root is None else str(self.content.image_root),
            "images": len(self.content.data["images"]),
            "annotations": len(self.content.data["annotations"]),
            "objects_per_category": {
                category["name"]: count for category, count in zip(table.categories, counts, strict=True)
            },
            "flaws": [self._flaw_as_dict(each) for each in self.flaws],
        }

    def _flaw_as_dict(self, found: Flaw) -> dict[str, Any]:
        entries = self.content.data[found.entries] if found.entries else []
        ids = [entries[row].get("id") if type(entries[row]) is dict else None for row in found.positions.tolist()]
        return {
            "kind": found.kind,
            "severity": found.severity,
            "count": found.count,
            "what": found.what,
            "remedy": found.remedy,
            "examples": list(found.examples),
            "entries": found.entries,
            "positions": found.positions.tolist(),
            "ids": [each if isinstance(each, int | str) else None for each in ids],
        }


@dataclass(frozen=True)
class CheckReport:
    """The flaws of one or more datasets that belong together.

    Attributes:
        parts: one per annotation file or split.
        cfg: the model that the objects were compared with.
    """

    parts: list[CheckedPart]
    cfg: CfgNode = field(repr=False)

    def count(self, severity: str) -> int:
        """Return the number of kinds of flaws of one severity, added up over the parts."""
        return sum(len([each for each in part.flaws if each.severity == severity]) for part in self.parts)

    @property
    def has_errors(self) -> bool:
        """Whether any part has an error."""
        return self.count("error") > 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "parts": [part.as_dict() for part in self.parts],
            **{f"{each}s": self.count(each) for each in SEVERITIES},
        }

    def __str__(self) -> str:
        return "\n".join(line for part in self.parts for line in _describe(part))


def _describe(part: CheckedPart) -> list[str]:
    data = part.content.data
    lines = [
        f"{part.name}: {len(data['images']):,} images, {len(data['annotations']):,} annotations, "
        f"{len(data['categories']):,} {'category' if len(data['categories']) == 1 else 'categories'}"
    ]
    lines += [f"  {each.severity}: {each} [{each.kind}]" for each in part.flaws] or ["  no flaws"]
    return [printable(line) for line in lines]


def check(
    *sources: str | os.PathLike[str] | Dataset,
    images: str | os.PathLike[str] | None = None,
    cfg: CfgNode | None = None,
) -> CheckReport:
    """Find all flaws of a dataset; every image is decoded.

    Args:
        sources: annotation files or folders of datasets in any format of :mod:`d2_maskrcnn.data.formats`, names of
            registered datasets, or datasets in memory. They are the parts of one dataset: images that two of them
            share, and categories that differ, are flaws.
        images: folder of the images; None searches near the annotations.
        cfg: config of the model to train: objects are compared with its anchors and limits, and masks are needed if
            ``MODEL.MASK_ON``. Default: Mask R-CNN with Detectron2's defaults.

    Raises:
        UserError: a source does not exist or is in no known format.
    """
    cfg = cfg or load_config("", ["MODEL.MASK_ON", "True"])
    root = None if images is None else Path(images)
    parts: list[CheckedPart] = []
    for source in sources:
        for content in load_contents(source if isinstance(source, Dataset) else os.fspath(source), root):
            part = _check_part(content, cfg)
            for other in parts:
                part.flaws.extend(check_parts(other.findings, part.findings, other.name))
            part.flaws.sort(key=lambda each: SEVERITIES.index(each.severity))
            parts.append(part)
    return CheckReport(parts, cfg)


def _check_part(content: Content, cfg: CfgNode) -> CheckedPart:
    train = content.split not in ("val", "test")
    purpose = Purpose(masks=cfg.MODEL.MASK_ON, train=train, decode_images=True)
    findings = find_flaws(content.data, content.image_root, purpose, cfg)
    findings.flaws.extend(check_dropped(content.dropped))
    return CheckedPart(content, findings, purpose)


def write_json(report: CheckReport, path: Path) -> None:
    """Write a report as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    write_output(path, json.dumps(report.as_dict(), indent=1))


@dataclass(frozen=True)
class RepairedFile:
    """A repaired copy of one part.

    Attributes:
        path: the COCO JSON.
        actions: what was done -> number of entries.
    """

    path: Path
    actions: Counter[str]

    def __str__(self) -> str:
        done = "".join(f"\n  {action}: {count:,}" for action, count in self.actions.items())
        return printable(f"Wrote {self.path}") + (done or "\n  nothing to repair")


def fix(report: CheckReport, folder: str | os.PathLike[str], overwrite: bool = False) -> list[RepairedFile]:
    """Write repaired copies of what was checked, as COCO JSON files that refer to the images where they lie.

    Only repairs that need no decision are done; :func:`check` of the copy lists what is left.

    Args:
        report: from :func:`check`.
        folder: for the files ``instances_<split>.json``.
        overwrite: whether existing files are replaced; never those that were checked.

    Raises:
        UserError: a file exists already, or is one of those that were checked.
    """
    paths = [Path(folder) / f"{name}.json" for name in _file_names(report.parts)]
    sources = {file.resolve() for part in report.parts for file in part.content.files}
    for path in paths:
        if path.resolve() in sources:
            raise UserError(f"{path}: is one of the files that were checked; name another folder for the repaired copy")
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists already; name another folder, or set overwrite")
    return [_fix_part(part, path) for part, path in zip(report.parts, paths, strict=True)]


def checked_files(report: CheckReport) -> set[Path]:
    """Return the annotation files and images of the datasets, which no output may replace, without links."""
    files = {file for part in report.parts for file in part.content.files}
    for part in report.parts:
        names = [each.get("file_name") for each in part.content.data["images"] if isinstance(each, dict)]
        root = part.content.image_root or Path()
        files |= {root / name for name in names if isinstance(name, str) and "\0" not in name}
    return {Path(os.path.realpath(file)) for file in files}


def _file_names(parts: Sequence[CheckedPart]) -> list[str]:
    splits = [part.content.split for part in parts]
    if len(set(splits)) == len(splits):
        return [f"instances_{split}" if split else "instances" for split in splits]
    return [f"instances_{number}" for number in range(1, len(parts) + 1)]


def _fix_part(part: CheckedPart, path: Path) -> RepairedFile:
    result = repair(part.content, part.findings, replace(part.purpose, decode_images=False))
    data, root = result.content.data, part.content.image_root or Path()
    images = [{**each, "file_name": os.path.abspath(root / each["file_name"])} for each in data["images"]]
    write_coco_json(path, {**data, "images": images})
    return RepairedFile(path, result.actions)
