"""Where results go: images, videos, JSON, CSV and a window; and the checks that spare a long run for nothing."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import encode_rle
from d2_maskrcnn.video.frame import Frame
from d2_maskrcnn.video.sources.images import is_file_type

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CSV_COLUMNS = ("frame", "time", "file", "track_id", "category_id", "category", "score", "x0", "y0", "x1", "y1", "area")
ESCAPE_KEYS = (27, ord("q"))
KEY_WAIT = 50  # milliseconds between looks whether a window is still there
JPEG_QUALITY = 95


def check_target(path: Path, overwrite: bool, option: str) -> Path:
    """Makes sure that a file can be written, and makes its folder.

    Raises:
        UserError: it exists (and ``overwrite`` is not set), or may not be written.
    """
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; expected a file's name.")
    if path.exists() and not overwrite:
        raise UserError(f"{option} {path} exists: add --overwrite to replace it, or name another file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {path}: its folder cannot be made ({error.strerror}).") from error
    writable = os.access(path, os.W_OK) if path.exists() else os.access(path.parent, os.W_OK)
    if not writable:
        raise UserError(f"{option} {path} may not be written: change the permissions or name another place.")
    return path


def check_display() -> None:
    """Makes sure that a window can be opened, in a process of its own, as Qt ends the process where it cannot.

    Raises:
        UserError: it cannot.
    """
    missing = sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    probe = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1); cv2.destroyAllWindows()"
    if missing or subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode:
        raise UserError("No display to show a window on: use --output FILE_OR_FOLDER (and --no-show) instead.")


class ImageFiles:
    """Writes each image to a file.

    Args:
        names: the input files. output: a file (for one image) or a folder.

    Raises:
        UserError: see :func:`check_target`.
    """

    def __init__(self, names: Sequence[str], output: Path, overwrite: bool) -> None:
        self._targets = _image_targets(names, output)
        for name, target in self._targets.items():
            if target.exists() and target.resolve() == Path(name).resolve():
                raise UserError(f"--output {output} would replace the input {name}: name another file or folder.")
            check_target(target, overwrite, "--output")

    def write(self, frame: Frame) -> None:
        """Writes one image.

        Raises:
            UserError: it cannot be written.
        """
        target = self._targets[frame.name]
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if target.suffix.lower() in (".jpg", ".jpeg") else []
        ok, data = cv2.imencode(target.suffix, frame.image, options)
        if not ok:
            raise UserError(f"{target}: an image of {frame.size[1]}x{frame.size[0]} cannot be encoded as this format.")
        try:
            target.write_bytes(data.tobytes())
        except OSError as error:
            raise UserError(f"Cannot write {target} ({error.strerror}).") from error

    def close(self) -> None:
        """Nothing is left open."""


def _image_targets(names: Sequence[str], output: Path) -> dict[str, Path]:
    if len(names) == 1 and output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        return {names[0]: output}
    if not output.exists() and is_file_type(output) and len(names) == 1:
        raise UserError(f"--output {output}: expected a folder, or a file that ends in {', '.join(IMAGE_SUFFIXES)}.")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file, but {len(names)} images need a folder.")
    targets: dict[str, Path] = {}
    taken: set[Path] = set()
    for name in names:
        source = Path(name)
        suffix = source.suffix if source.suffix.lower() in IMAGE_SUFFIXES else ".png"
        target, number = output / f"{source.stem}{suffix}", 2
        while target in taken:  # the same name in two folders
            target, number = output / f"{source.stem}_{number}{suffix}", number + 1
        taken.add(target)
        targets[name] = target
    return targets


class _TextFile:
    """A text file that is written piece by piece; what was written is kept whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: io.TextIOWrapper = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise UserError(f"Cannot write {path} ({error.strerror}).") from error

    def _put(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise UserError(f"Cannot write {self.path} ({error.strerror}).") from error

    def close(self) -> None:
        """Closes the file.

        Raises:
            UserError: what was held back cannot be written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise UserError(f"Cannot write {self.path} ({error.strerror}).") from error


class JsonLines(_TextFile):
    """One JSON object a frame and line: ``{"frame", "time", "detections": [...]}``."""

    def write(self, frame: Frame, records: list[dict[str, Any]]) -> None:
        """Adds a line."""
        self._put(json.dumps({"frame": frame.index, "time": round(frame.time, 6), "detections": records}) + "\n")


class CocoResults(_TextFile):
    """COCO's result format: one list of detections, each with its ``image_id``."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        super().__init__(path)
        stems = [Path(name).stem for name in names]
        numbers = all(stem.isdigit() for stem in stems) and len(set(stems)) == len(stems)
        self._ids = {
            name: int(stem) if numbers else i + 1 for i, (name, stem) in enumerate(zip(names, stems, strict=True))
        }
        self._empty = True
        self._put("[")

    def write(self, frame: Frame, records: list[dict[str, Any]]) -> None:
        """Adds an image's detections."""
        for record in records:
            entry = {"image_id": self._ids[frame.name], "file_name": frame.name, **record}
            self._put(("\n" if self._empty else ",\n") + json.dumps(entry))
            self._empty = False

    def close(self) -> None:
        """Ends the list."""
        self._put("\n]\n")
        super().close()


class CsvRows(_TextFile):
    """One row a detection, in the columns :data:`CSV_COLUMNS`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._put(_csv_line(CSV_COLUMNS))

    def write(self, frame: Frame, records: list[dict[str, Any]]) -> None:
        """Adds a frame's rows."""
        for record in records:
            x0, y0, w, h = record["bbox"]
            shared = (record.get("track_id", ""), record["category_id"], record["category"], record["score"])
            area = record.get("area", "")
            box = (x0, y0, round(x0 + w, 2), round(y0 + h, 2))
            self._put(_csv_line((frame.index, round(frame.time, 6), frame.name, *shared, *box, area)))


def records_of(frame: Frame, names: Sequence[str], ids: Sequence[int]) -> list[dict[str, Any]]:
    """A frame's detections as JSON's types: ``category_id``, ``category``, ``bbox`` (XYWH), ``score``, ``segmentation``
    (RLE), ``area`` in pixels and, with tracking, ``track_id``.
    """
    found = frame.found
    if found is None:
        return []
    records = []
    for index in range(len(found)):
        cls = int(found.classes[index])
        x0, y0, x1, y1 = (round(float(side), 2) for side in found.boxes[index])
        record: dict[str, Any] = {
            "category_id": ids[cls],
            "category": names[cls] if cls < len(names) else str(cls),
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "score": round(float(found.scores[index]), 5),
        }
        if found.track_ids is not None:
            record["track_id"] = int(found.track_ids[index])
        if found.masks is not None:
            window, pixels = found.masks.crop(index)
            record["segmentation"] = encode_rle(pixels, window, found.image_size)
            record["area"] = int(np.count_nonzero(pixels))
        records.append(record)
    return records


class Window:
    """Shows frames on the screen.

    Args:
        title: of the window. wait: whether each frame stays until a key is pressed, as for images.
    """

    def __init__(self, title: str, wait: bool) -> None:
        self._title, self._wait = title, wait
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)

    def show(self, frame: Frame) -> bool:
        """Shows a frame; False when the person has had enough: Esc, q, or the window was closed."""
        if not self._is_open():  # drawing into it would open it again
            return False
        cv2.imshow(self._title, frame.image)
        key = cv2.waitKey(KEY_WAIT if self._wait else 1)
        while self._wait and key < 0 and self._is_open():  # waiting without an end would not see that it was closed
            key = cv2.waitKey(KEY_WAIT)
        return self._is_open() and key & 0xFF not in ESCAPE_KEYS

    def close(self) -> None:
        """Takes the window away."""
        if self._is_open():
            cv2.destroyWindow(self._title)

    def _is_open(self) -> bool:
        try:
            return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # what some back-ends raise for a window that is gone
            return False


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()
