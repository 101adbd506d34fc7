"""Limits of the server, and its API key."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import MAX_TILED_PIXELS

API_KEY_VARIABLE = "D2_MASKRCNN_API_KEY"
MIN_KEY_LENGTH = 16  # characters


@dataclass(frozen=True)
class Settings:
    """Limits of the server.

    Attributes:
        max_bytes: of the body of a request.
        max_pixels: of an image, compared before it is decoded.
        max_images: of one request for a batch.
        max_queue: requests whose body has arrived and that are not answered yet; further ones are refused.
        max_buffered_bytes: of the bodies of all accepted requests together, also of those that still arrive.
        timeout: seconds for receiving a request, and again for answering it.
        batch_size: most images per forward pass.
        lowest_threshold: lowest score that a request can ask for, in [0, 1].
        default_threshold: of requests that give none; not below ``lowest_threshold``.
        api_key: what requests must present; "" for none.

    Raises:
        UserError: a limit is not positive, or larger than what can be read, or ``default_threshold`` is too low.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_images: int = 64
    max_queue: int = 128
    max_buffered_bytes: int = 2**30
    timeout: float = 30.0
    batch_size: int = 8
    lowest_threshold: float = 0.05
    default_threshold: float = 0.5
    api_key: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") or field.name in ("timeout", "batch_size"):
                if not 0 < value < float("inf"):
                    raise UserError(f"{field.name} {value}: expected a positive number.")
            elif field.name.endswith("threshold") and not 0 <= value <= 1:
                raise UserError(f"{field.name} {value}: expected a number from 0 to 1.")
        if self.max_pixels > MAX_TILED_PIXELS:
            raise UserError(f"max_pixels {self.max_pixels}: expected at most {MAX_TILED_PIXELS}.")
        if self.default_threshold < self.lowest_threshold:
            raise UserError(
                f"The default threshold {self.default_threshold} is below the lowest threshold "
                f"{self.lowest_threshold}: raise the one or lower the other."
            )


def read_api_key(path: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the API key: the content of a file, else that of the environment variable, else "".

    Raises:
        UserError: the file cannot be read, or the key is empty, shorter than 16 characters, or contains spaces or
            characters outside ASCII.
    """
    if path is None:
        if API_KEY_VARIABLE not in environment:
            return ""
        where, key = f"The variable {API_KEY_VARIABLE}", environment[API_KEY_VARIABLE].strip()
    else:
        try:
            where, key = str(path), path.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(f"{path}: the API key cannot be read ({reason}).") from error
    if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"{where}: expected an API key of at least {MIN_KEY_LENGTH} ASCII characters without spaces, such as the "
            "output of: openssl rand -hex 32"
        )
    return key
