"""The detections of one image, with plots and conversions to other formats."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from d2_maskrcnn.data.windowed_images import WindowedImage
from d2_maskrcnn.errors import UserError, import_extra, printable
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.masks import rle_area
from d2_maskrcnn.visualization import Annotator
from d2_maskrcnn.visualization.encoding import encode_image
from d2_maskrcnn.weights.atomic import write_output
from detectron2.structures import Boxes, Instances

INLINE_SIDE = 1024  # longest side in pixels of the image that a notebook shows


class Results:
    """The detections of one image, in pixels of that image.

    Args:
        image: (H, W, 3) uint8, RGB; of other images as :func:`~d2_maskrcnn.data.raw_images.to_rgb` shows them. Or an
            image that is decoded by windows, see :class:`~d2_maskrcnn.data.windowed_images.WindowedImage`.
        detections: in the frame of ``image``.
        class_names: names of the model's classes; classes without a name are named by their number.
        path: file of the image, "" if it came from memory.
        category_ids: COCO category id of each class; 1, 2, 3, ... if None.

    Attributes:
        detections, class_names, path: see above.
    """

    def __init__(
        self,
        image: np.ndarray | WindowedImage,
        detections: Detections,
        class_names: Sequence[str] = (),
        path: str = "",
        category_ids: Sequence[int] | None = None,
    ) -> None:
        self._image = image
        self.detections = detections
        self.class_names = list(class_names)
        self.path = path
        self._category_ids = category_ids

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB. An image that was decoded by windows is decoded again, reduced if it is very large.

        Raises:
            UserError: its file has changed.
        """
        if isinstance(self._image, WindowedImage):
            self._image = self._image.display()
        return self._image

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32, XYXY."""
        return self.detections.boxes

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32 in [0, 1], descending."""
        return self.detections.scores

    @property
    def class_ids(self) -> np.ndarray:
        """(N,) int64, counted from 0."""
        return self.detections.classes

    @property
    def names(self) -> list[str]:
        """The N class names."""
        return [class_name(self.class_names, int(each)) for each in self.class_ids]

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, computed at each access; iterate over ``detections.masks`` to save memory."""
        if self.detections.masks is None or len(self) == 0:
            return np.zeros((0, *self.image_size), dtype=bool)
        return np.stack(list(self.detections.masks))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.detections.image_size

    def __len__(self) -> int:
        return len(self.detections)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> "Results":
        """Select detections by an integer, a slice, an index array or a bool array."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"detection {index} of {len(self)}")
            index = [int(index) % len(self)]
        chosen = self.detections[index if isinstance(index, slice) else self._positions(index)]
        return Results(self._image, chosen, self.class_names, self.path, self._category_ids)

    def _positions(self, index: Any) -> np.ndarray:
        """Convert an index array or a bool array of any kind to an array for NumPy."""
        array = np.atleast_1d(np.asarray(index))
        if array.ndim > 1 or not (array.size == 0 or array.dtype.kind in "biu"):
            raise IndexError(f"index {index!r:.100}; expected an integer, a slice, integers or one bool per detection")
        return array.astype(np.int64) if array.size == 0 and array.dtype.kind == "f" else array

    def __iter__(self) -> Iterator["Results"]:
        """Yield the detections one by one, each as ``Results`` of length 1."""
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.image_size
        counts: dict[str, int] = {}
        for name in self.names:
            counts[name] = counts.get(name, 0) + 1
        text = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
        return printable(f"Results({self.path or 'image'}, {width}x{height}: {text or 'no detections'})")

    def _repr_png_(self) -> bytes:
        """Show the annotated image in a notebook."""
        image = Image.fromarray(self.plot())
        image.thumbnail((INLINE_SIDE, INLINE_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def plot(self, *, masks: bool = True, boxes: bool = True, labels: bool = True) -> np.ndarray:
        """Draw the detections on a copy of :attr:`image`; returns (H, W, 3) uint8, RGB."""
        canvas = np.ascontiguousarray(self.image[:, :, ::-1])
        shown = self.detections
        if canvas.shape[:2] != self.image_size:
            shown = shown.resized(canvas.shape[0], canvas.shape[1])
        Annotator(self.class_names, masks=masks, boxes=boxes, labels=labels).draw(canvas, shown)
        return np.ascontiguousarray(canvas[:, :, ::-1])

    def show(self) -> None:
        """Open the annotated image in the system's image viewer."""
        Image.fromarray(self.plot()).show(title=self.path or None)

    def save(self, path: str | Path) -> Path:
        """Write the annotated image; the suffix selects the format.

        Raises:
            UserError: unknown suffix, the image is too large for the format, or the file cannot be written.
        """
        if not isinstance(path, (str, Path)):
            raise UserError(f"save {path!r:.100}: expected the name of an image file.")
        target = Path(path).expanduser()
        write_output(target, encode_image(self.plot()[:, :, ::-1], target), sync=False)
        return target

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Convert to COCO's result format: a list of dicts as in :func:`to_records`, each with ``image_id``."""
        ids = self._category_ids or range(1, int(self.class_ids.max(initial=0)) + 2)
        records = to_records(self.detections, self.class_names, list(ids))
        image_id = int(image_id) if isinstance(image_id, np.integer) else image_id  # which JSON does not take
        return [{"image_id": image_id, **record} for record in records]

    def to_json(self) -> str:
        """Convert to a JSON object: ``path, width, height, detections`` (as in :meth:`to_coco`)."""
        height, width = self.image_size
        detections = [{k: v for k, v in record.items() if k != "image_id"} for record in self.to_coco(0)]
        return json.dumps({"path": self.path, "width": width, "height": height, "detections": detections})

    def to_pandas(self) -> Any:
        """Convert to a ``pandas.DataFrame``: ``x0, y0, x1, y1, score, class_id, name, area``; needs pandas.

        Raises:
            UserError: pandas is not installed.
        """
        pandas = import_extra("pandas", "pandas")
        areas = np.zeros(0, np.int64) if self.detections.masks is None else self.detections.masks.areas()
        columns: Mapping[str, Any] = {
            **{name: self.boxes[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))},
            "score": self.scores,
            "class_id": self.class_ids,
            "name": pandas.Series(self.names, dtype=str),
            "area": areas if len(areas) == len(self) else np.nan,
        }
        return pandas.DataFrame(columns)

    def to_supervision(self) -> Any:
        """Convert to ``supervision.Detections``; needs supervision.

        Raises:
            UserError: supervision is not installed.
        """
        supervision = import_extra("supervision", "supervision")
        return supervision.Detections(
            xyxy=self.boxes,
            mask=None if self.detections.masks is None else self.masks,
            confidence=self.scores,
            class_id=self.class_ids.astype(int),
            tracker_id=self.detections.track_ids,
            data={"class_name": np.array(self.names, dtype=object)},
        )

    def to_instances(self) -> Instances:
        """Convert to Detectron2's ``Instances``: ``pred_boxes, scores, pred_classes`` and, if any, ``pred_masks``."""
        instances = Instances(self.image_size)
        instances.pred_boxes = Boxes(torch.from_numpy(self.boxes))
        instances.scores = torch.from_numpy(self.scores)
        instances.pred_classes = torch.from_numpy(self.class_ids)
        if self.detections.masks is not None:
            instances.pred_masks = torch.from_numpy(self.masks)
        return instances


def class_name(names: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number if ``names`` is too short."""
    return names[index] if index < len(names) else str(index)


def to_records(detections: Detections, names: Sequence[str], ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert detections to JSON-compatible dicts.

    Args:
        detections: of one image.
        names: class names; classes without one are named by their number.
        ids: COCO category id of each class.

    Returns:
        For each detection ``category_id``, ``category``, ``bbox`` (XYWH, pixels), ``score`` and, where available,
        ``segmentation`` (RLE), ``area`` (pixels) and ``track_id``.
    """
    records = []
    for index in range(len(detections)):
        category = int(detections.classes[index])
        x0, y0, x1, y1 = (round(float(side), 2) for side in detections.boxes[index])
        record: dict[str, Any] = {
            "category_id": ids[category],
            "category": class_name(names, category),
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "score": round(float(detections.scores[index]), 5),
        }
        if detections.track_ids is not None:
            record["track_id"] = int(detections.track_ids[index])
        if detections.masks is not None:
            record["segmentation"] = detections.masks.rle(index)
            record["area"] = rle_area(record["segmentation"])
        records.append(record)
    return records
