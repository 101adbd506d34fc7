"""Write detections as COCO results, JSON lines or CSV."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_maskrcnn.errors import UserError, escape_formula
from d2_maskrcnn.video.frame import Frame

CSV_COLUMNS = ("frame", "time", "file", "track_id", "category_id", "category", "score", "x0", "y0", "x1", "y1", "area")


class _TextFile:
    """A text file that is flushed after every piece, so that what was written survives any failure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # File names may contain bytes that aren't UTF-8; they are written as \\udcXX.
            self._file: io.TextIOWrapper = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise UserError(f"Cannot write {path} ({error.strerror}).") from error

    def _put(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise UserError(f"Cannot write {self.path} ({error.strerror}).") from error

    def close(self) -> None:
        """Close the file.

        Raises:
            UserError: buffered text cannot be written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise UserError(f"Cannot write {self.path} ({error.strerror}).") from error


class JsonLines(_TextFile):
    """One JSON object per frame and line: ``{"frame", "time", "detections": [...]}``."""

    def write(self, frame: Frame) -> None:
        """Append the line of a frame."""
        entry = {"frame": frame.index, "time": round(frame.time, 6), "detections": frame.records}
        self._put(json.dumps(entry) + "\n")


def images_file(results: Path) -> Path:
    """Return the path of the list of images that :class:`CocoResults` writes beside its results."""
    return results.with_suffix(".images.json")


class CocoResults(_TextFile):
    """COCO's result format: a list of detections, each with its ``image_id`` and ``file_name``.

    That format has no place for images without detections, so ``<name>.images.json`` beside it lists every image that
    was processed: ``{"id", "file_name", "width", "height", "detections"}``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._images: list[dict[str, Any]] = []
        self._empty = True
        self._put("[")

    def write(self, frame: Frame) -> None:
        """Append the detections of an image."""
        height, width = frame.size
        image = {"id": frame.index, "file_name": frame.name, "width": width, "height": height}
        self._images.append({**image, "detections": len(frame.records)})
        for record in frame.records:
            entry = {"image_id": frame.index, "file_name": frame.name, **record}
            self._put(("\n" if self._empty else ",\n") + json.dumps(entry))
            self._empty = False

    def close(self) -> None:
        """Complete the list and write the list of images."""
        self._put("\n]\n")
        super().close()
        images = _TextFile(images_file(self.path))
        images._put(json.dumps(self._images, indent=1) + "\n")
        images.close()


class CsvRows(_TextFile):
    """One row per detection in the columns :data:`CSV_COLUMNS`; an image without detections has one row as well."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._put_row(CSV_COLUMNS)

    def write(self, frame: Frame) -> None:
        """Append the rows of a frame."""
        place = (frame.index, round(frame.time, 6), escape_formula(frame.name))
        if frame.name and not frame.records:
            self._put_row((*place, *[""] * (len(CSV_COLUMNS) - len(place))))
        for record in frame.records:
            x0, y0, width, height = record["bbox"]
            box = (x0, y0, round(x0 + width, 2), round(y0 + height, 2))
            label = (record["category_id"], escape_formula(record["category"]), record["score"])
            self._put_row((*place, record.get("track_id", ""), *label, *box, record.get("area", "")))

    def _put_row(self, values: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line).writerow(values)
        self._put(line.getvalue())
