"""Recognize the format of annotations by their content."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.json_files import other_coco, read_json, recognize_json
from d2_maskrcnn.errors import UserError

FORMATS = {"coco": "COCO JSON"}
DEPTH = 3  # levels of folders that are searched
PROBED = 20  # JSON files of a folder whose format is determined


@dataclass
class Source:
    """Annotation files of one format.

    Attributes:
        path: the file or folder that was named.
        format: a key of :data:`FORMATS`.
        files: the annotation files, or the folders where the format is a layout of folders.
    """

    path: Path
    format: str
    files: list[Path]
    _documents: dict[Path, Any] = field(default_factory=dict, repr=False)

    def document(self, path: Path) -> Any:
        """Return the parsed JSON of one file; it is parsed once and released when it is asked for."""
        return self._documents.pop(path) if path in self._documents else read_json(path)


def recognize(path: Path | str) -> Source:
    """Find the annotations in a file or folder and determine their format by content.

    Raises:
        UserError: nothing is there, or in no known format; the message gives the nearest guess.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        return _in_folder(given)
    if not given.exists():
        raise UserError(f"{given}: no such file or folder; expected annotations ({', '.join(FORMATS.values())})")
    document = read_json(given)
    name = recognize_json(document)
    if name is None or name not in FORMATS:
        raise UserError(f"{given}: {other_coco(document) or 'not in a known format'}; expected {_expected()}")
    return Source(given, name, [given], {given: document})


def _in_folder(folder: Path) -> Source:
    found: dict[str, list[Path]] = {}
    documents = {}
    for path in _files(folder, ".json"):
        document = read_json(path)
        name = recognize_json(document)
        if name in FORMATS:
            found.setdefault(name, []).append(path)
            documents[path] = document
    if not found:
        raise UserError(f"{folder}: no annotations in a known format; expected {_expected()}")
    name = max(found, key=lambda each: len(found[each]))
    instances = [path for path in found[name] if path.name.startswith("instances_")]
    return Source(folder, name, instances or found[name], documents)


def _files(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix, in order of their names, up to ``DEPTH`` levels of folders."""
    patterns = ["/".join(["*"] * depth) for depth in range(1, DEPTH + 1)]
    return sorted(path for pattern in patterns for path in folder.glob(pattern + suffix) if path.is_file())


def _expected() -> str:
    return "one of: " + ", ".join(FORMATS.values())
