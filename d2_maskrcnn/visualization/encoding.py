"""Encode drawn images as files."""

from pathlib import Path

import cv2
import numpy as np

from d2_maskrcnn.errors import UserError

MAX_SIDES = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".png": 1_000_000}  # of OpenCV's encoders


def encode_image(image: np.ndarray, target: Path, jpeg_quality: int = 95) -> bytes:
    """Encode an image in the format that the suffix of a file's name selects.

    Args:
        image: (H, W, 3) uint8 BGR.
        target: the file, for its suffix and for messages.
        jpeg_quality: 0 to 100.

    Raises:
        UserError: unknown suffix, or a side of the image is longer than the format allows.
    """
    suffix = target.suffix.lower()
    height, width = image.shape[:2]
    most = MAX_SIDES.get(suffix)
    if most is not None and max(height, width) > most:
        raise UserError(
            f"{target}: {width}x{height} pixels; {suffix} files have sides of at most {most} pixels: write a file that "
            "ends in .tif"
        )
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if suffix in (".jpg", ".jpeg") else []
    try:
        ok, data = cv2.imencode(suffix or ".", image, options)
    except cv2.error as error:
        raise UserError(f"{target}: no known image format; use .jpg or .png.") from error
    if not ok:
        raise UserError(f"{target}: {width}x{height} pixels cannot be encoded in this format; use .tif.")
    encoded: bytes = data.tobytes()
    return encoded
