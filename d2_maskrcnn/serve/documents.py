"""Convert detections to the answers of the server: COCO JSON and annotated images."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, Field

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.results import Results, class_name, to_records
from d2_maskrcnn.structures.detections import Detections

ImageFormat = Literal["png", "jpeg"]
MAX_JPEG_SIDE = 65_500  # pixels
MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg"}


# The models describe the JSON in the OpenAPI schema; answers are written without them, which is faster.
class CocoImage(BaseModel):
    """An image, upright."""

    id: int = Field(description="from 1 on, in the order of the request")
    file_name: str = Field(description="as in the multipart form, or empty")
    width: int
    height: int


class CocoRle(BaseModel):
    """Compressed run-length encoding, which pycocotools decodes."""

    size: list[int] = Field(description="height and width")
    counts: str


class CocoAnnotation(BaseModel):
    """A detection."""

    id: int
    image_id: int
    category_id: int
    category: str
    bbox: list[float] = Field(description="x, y, width, height in pixels")
    score: float
    segmentation: CocoRle | None = None
    area: int | None = Field(None, description="pixels of the mask")
    iscrowd: int


class CocoCategory(BaseModel):
    """A class of the model."""

    id: int
    name: str


class CocoDocument(BaseModel):
    """Detections in the form of a COCO dataset; ``annotations`` are also in the form of COCO results."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class ErrorDocument(BaseModel):
    """Why a request was refused."""

    error: str


def categories(predictor: Predictor) -> list[dict[str, Any]]:
    """Return the classes of a model as COCO categories."""
    names = predictor.class_names
    return [{"id": each, "name": class_name(names, index)} for index, each in enumerate(predictor.category_ids)]


def select(detections: Detections, threshold: float, masks: bool) -> Detections:
    """Keep detections with scores above a threshold, with or without their masks."""
    chosen = detections[detections.scores > threshold]
    return chosen if masks else replace(chosen, masks=None)


def coco_json(predictor: Predictor, names: Sequence[str], results: Sequence[Detections]) -> bytes:
    """Convert the detections of N images to a :class:`CocoDocument`.

    Args:
        predictor: has the classes.
        names: of the N files.
        results: of the N images.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, detections) in enumerate(zip(names, results, strict=True), 1):
        height, width = detections.image_size
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for record in to_records(detections, predictor.class_names, predictor.category_ids):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **record, "iscrowd": 0})
    document = {"images": images, "annotations": annotations, "categories": categories(predictor)}
    return json.dumps(document, separators=(",", ":")).encode()


def annotated_image(predictor: Predictor, image: np.ndarray, detections: Detections, kind: ImageFormat) -> bytes:
    """Draw detections on an image and encode it.

    Args:
        predictor: has the classes.
        image: (H, W, 3) uint8, RGB; not changed.
        detections: in its frame.
        kind: format.

    Raises:
        UserError: a side of the image is too long for JPEG.
    """
    if kind == "jpeg" and max(image.shape) > MAX_JPEG_SIDE:
        raise UserError(f"image of {image.shape[1]}x{image.shape[0]} pixels: too large for JPEG; ask for png.")
    drawn = Results(image, detections, predictor.class_names).plot(masks=detections.masks is not None)
    return cv2.imencode(f".{kind}", drawn[:, :, ::-1])[1].tobytes()


def image_format(accept: str) -> ImageFormat | None:
    """Return the format of the answer that an ``Accept`` header prefers: an image, or None for JSON.

    >>> image_format("image/png"), image_format("text/html, */*;q=0.8"), image_format("application/json, image/png")
    ('png', None, None)
    """
    offers: dict[str, ImageFormat | None] = {
        "application/json": None, "*/*": None, "application/*": None,
        "image/png": "png", "image/*": "png", "image/jpeg": "jpeg",
    }  # fmt: skip
    best, best_quality = None, 0.0
    for part in accept.lower().split(","):
        name, *parameters = (each.strip() for each in part.split(";"))
        quality = next((_number(each[2:]) for each in parameters if each.startswith("q=")), 1.0)
        if name in offers and quality > best_quality:
            best, best_quality = offers[name], quality
    return best


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
