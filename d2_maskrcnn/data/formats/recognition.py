"""Recognize the format of annotations by their content."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from d2_maskrcnn.data.formats.mask_layouts import find_mask_folders
from d2_maskrcnn.data.image_reading import is_image_name
from d2_maskrcnn.data.json_files import other_coco, read_json, recognize_json
from d2_maskrcnn.errors import UserError

FORMATS = {
    "coco": "COCO JSON",
    "via": "JSON of the VGG Image Annotator (VIA)",
    "labelme": "LabelMe JSON",
    "label-studio": "Label Studio JSON",
    "cvat": "CVAT XML",
    "yolo": "a YOLO data.yaml",
    "voc": "Pascal VOC's folders SegmentationObject and SegmentationClass",
    "masks": "PNG masks in a folder beside the images",
}
DEPTH = 4  # levels of folders that are searched
PROBED = 20  # JSON files of a folder that are parsed to determine their format; all, unless they are LabelMe's
_HEAD = 65536  # bytes by which a file is recognized
_SIGNATURES = {
    "coco": {"images", "annotations", "categories", "info", "licenses"},
    "labelme": {"shapes", "imagePath", "imageData", "imageHeight", "imageWidth"},
    "via": {"_via_settings", "_via_img_metadata", "_via_attributes", "file", "metadata", "view", "attribute"},
}


@dataclass
class Source:
    """Annotation files of one format.

    Attributes:
        path: the file or folder that was named.
        format: a key of :data:`FORMATS`.
        files: the annotation files; folders for "voc" and "masks".
        broken: JSON files of the folder that cannot be read, with the reason.
        images: folder of the images; None searches near the annotations.
        category: name for objects without a category.
        category_attribute: the attribute that contains the category (VIA); None chooses one.
    """

    path: Path
    format: str
    files: list[Path]
    broken: list[tuple[Path, str]] = field(default_factory=list)
    images: Path | None = None
    category: str = "object"
    category_attribute: str | None = None
    _documents: dict[Path, Any] = field(default_factory=dict, repr=False)

    def document(self, path: Path) -> Any:
        """Return the parsed JSON of one file; what was parsed to recognize it is not parsed again."""
        return self._documents.pop(path) if path in self._documents else read_json(path)


def recognize(path: Path | str) -> Source:
    """Find the annotations in a file or folder and determine their format by content.

    Raises:
        UserError: nothing is there, in no known format, or in several; the message gives the nearest guess.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        return _in_folder(given)
    if not given.exists():
        raise UserError(f"{given}: no such file or folder; expected {_expected()}")
    name, document, guess = _recognize_file(given)
    if name is None:
        raise UserError(f"{given}: {guess}; expected {_expected()}")
    return Source(given, name, [given], _documents={} if document is None else {given: document})


def _recognize_file(path: Path) -> tuple[str | None, Any, str]:
    """Return the format of a file, its parsed JSON, and if the format is unknown the nearest guess."""
    kind, head = sniff(path)
    if kind == "json":
        document = read_json(path)
        name = recognize_json(document)
        return name, document, "" if name else _guess(document)
    if kind == "xml":
        root = _root_tag(head)
        if root == "annotations":
            return "cvat", None, ""
        boxes = "; these are boxes of Pascal VOC, without masks" if root == "annotation" else ""
        return None, None, f"XML with the root <{root}>, not CVAT's <annotations>{boxes}"
    if kind == "image":
        return None, None, "an image, not annotations; name the folder of the dataset"
    return ("yolo", None, "") if _is_data_yaml(path) else (None, None, _guess_text(head))


def sniff(path: Path) -> tuple[str, str]:
    """Return "json", "xml", "image" or "text" for the content of a file, and the beginning of its text."""
    if not path.is_file():
        raise UserError(f"{path}: a FIFO, device or socket; expected {_expected()}")
    with path.open("rb") as file:
        raw = file.read(_HEAD)
    if raw.startswith((b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")):
        return "image", ""
    text = raw.decode(json.detect_encoding(raw), errors="replace").lstrip("\ufeff \t\r\n")
    return {"{": "json", "[": "json", "<": "xml"}.get(text[:1], "json" if not text else "text"), text


def _root_tag(head: str) -> str:
    match = re.search(r"<(?![?!])\s*([\w.:-]+)", head)
    return match.group(1) if match else "?"


def _guess(document: Any) -> str:
    other = other_coco(document)
    if other is not None:
        return other
    if not isinstance(document, dict):
        return "not annotations in a known format"
    shared = {name: keys & document.keys() for name, keys in _SIGNATURES.items()}
    nearest = max(shared, key=lambda name: len(shared[name]))
    present = ", ".join(map(repr, list(document)[:6])) or "no keys"
    if not shared[nearest]:
        return f"JSON in no known format (it has {present})"
    needed = {"coco": ("images", "annotations", "categories"), "labelme": ("shapes", "imagePath")}.get(nearest, ())
    missing = ", ".join(repr(key) for key in needed if key not in document)
    return f"JSON in no known format (it has {present}), nearest to {FORMATS[nearest]}" + (
        f", of which {missing} is missing" if missing else ""
    )


def _guess_text(head: str) -> str:
    first = head.splitlines()[0] if head else ""
    if re.fullmatch(r"\d+(\s+[-+.\deE]+){4,}\s*", first):
        return "labels of YOLO; name the data.yaml of the dataset, or the folder that contains it"
    if first.startswith("filename,") or "region_shape_attributes" in first:
        return "CSV of VIA; export the annotations as JSON"
    return "text in no known format"


def _is_data_yaml(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace")[:_HEAD])
    except (yaml.YAMLError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "names" in content and bool({"train", "val", "test", "path"} & content.keys())


def _in_folder(folder: Path) -> Source:
    source = Source(folder, "", [])
    found = _find_json(folder, source)
    found["cvat"] = [path for path in _files(folder, ".xml") if _recognize_file(path)[0] == "cvat"]
    found["yolo"] = [path for suffix in (".yaml", ".yml") for path in _files(folder, suffix) if _is_data_yaml(path)]
    found["voc"] = [path.parent for path in _folders(folder) if path.name == "SegmentationObject"]
    found = {name: files for name, files in found.items() if files}
    if not found:
        found["masks"] = find_mask_folders(_folders(folder))
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise UserError(f"{folder}: {_guess_folder(folder, source)}; expected {_expected()}")
    if len(found) > 1:
        places = " and ".join(f"{FORMATS[name]} ({files[0]})" for name, files in found.items())
        raise UserError(f"{folder}: annotations in several formats, {places}; name one of these files or their folder")
    source.format, source.files = next(iter(found.items()))
    return source


def _find_json(folder: Path, source: Source) -> dict[str, list[Path]]:
    """Return the JSON files by format. Of COCO's own files only those of instances, where there are any."""
    found: dict[str, list[Path]] = {}
    paths = _files(folder, ".json")
    for index, path in enumerate(paths):
        if index >= PROBED and set(found) == {"labelme"}:
            found["labelme"] += paths[index:]
            break
        try:
            name, document, _ = _recognize_file(path)
        except UserError as error:
            source.broken.append((path, str(error).removeprefix(f"{path}: ")))
            continue
        if name is not None:
            found.setdefault(name, []).append(path)
            source._documents[path] = document
    instances = [path for path in found.get("coco", []) if path.name.startswith("instances_")]
    return {**found, "coco": instances or found.get("coco", [])}


def _folders(folder: Path) -> list[Path]:
    """Return a folder and the folders in it, in order of their names, up to ``DEPTH`` levels; links are followed."""
    levels = [[folder]]
    for _ in range(DEPTH - 1):
        levels.append(
            sorted(each for parent in levels[-1] for each in parent.iterdir() if each.is_dir() and each.name[0] != ".")
        )
    return [each for level in levels for each in level]


def _files(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix in a folder and the folders in it."""
    names = (path for each in _folders(folder) for path in sorted(each.iterdir()) if path.suffix.lower() == suffix)
    return [path for path in names if path.is_file()]


def _guess_folder(folder: Path, source: Source) -> str:
    if source.broken:
        return f"no readable annotations ({source.broken[0][0]}: {source.broken[0][1]})"
    if any(path.name == "SegmentationClass" for path in _folders(folder)):
        return "semantic masks of Pascal VOC, without SegmentationObject, which tells objects apart"
    texts = _files(folder, ".txt")
    guesses = (_guess_text(sniff(path)[1]) for path in texts[:PROBED])
    labels = next((guess for guess in guesses if "YOLO" in guess), None)
    if labels is not None:
        return f"{labels} (there is none)"
    images = sum(is_image_name(path) for each in _folders(folder) for path in each.iterdir())
    return "no annotations in a known format" + (f", but {images} image{'s' * (images > 1)}" if images else "")


def _expected() -> str:
    *others, last = FORMATS.values()
    return f"{', '.join(others)} or {last}"
