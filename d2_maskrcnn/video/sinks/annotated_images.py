"""Write images to files."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import cv2

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.frame import Frame
from d2_maskrcnn.video.sinks.output_paths import check_target, identify
from d2_maskrcnn.video.sources.images import has_media_suffix
from d2_maskrcnn.weights.atomic import atomic_write_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
JPEG_QUALITY = 95


class ImageFiles:
    """Write each image to a file of the same base name; equal base names get a number.

    Args:
        names: paths of the input images.
        output: a folder, or for one image a file.
        overwrite: whether existing files may be replaced.
        label: what the user calls ``output``, for messages.
        inputs: more files that are never replaced, such as the weights.

    Raises:
        UserError: a file exists, isn't writable, or would replace an input.
    """

    def __init__(
        self, names: Sequence[str], output: Path, overwrite: bool, label: str = "Output", inputs: Sequence[str] = ()
    ) -> None:
        self._targets = _targets(names, output, label)
        kept = identify([*names, *inputs])
        for target in self._targets.values():
            check_target(target, overwrite, label, kept)

    def write(self, frame: Frame) -> None:
        """Write one image.

        Raises:
            UserError: it cannot be encoded or written.
        """
        target = self._targets[frame.name]
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if target.suffix.lower() in (".jpg", ".jpeg") else []
        try:
            ok, data = cv2.imencode(target.suffix, frame.image, options)
        except cv2.error:  # JPEG and WebP limit the side of an image
            ok = False
        if not ok:
            raise UserError(f"{target}: {frame.size[1]}x{frame.size[0]} pixels are too many for this format; use .png.")
        atomic_write_bytes(target, data.tobytes(), sync=False)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _targets(names: Sequence[str], output: Path, label: str) -> dict[str, Path]:
    if len(names) == 1 and output.suffix.lower() in SUFFIXES and not output.is_dir():
        return {names[0]: output}
    looks_like_file = has_media_suffix(output) or re.fullmatch(r"\.[A-Za-z]\w{1,4}", output.suffix)
    if not output.exists() and looks_like_file and len(names) == 1:
        raise UserError(f"{label} {output}: expected a folder, or a file that ends in {', '.join(SUFFIXES)}.")
    if output.exists() and not output.is_dir():
        raise UserError(f"{label} {output} is a file, but {len(names)} images need a folder.")
    targets: dict[str, Path] = {}
    taken: set[Path] = set()
    for name in names:
        source = Path(urlsplit(name).path if "://" in name else name)
        suffix = source.suffix if source.suffix.lower() in SUFFIXES else ".png"
        target, number = output / f"{source.stem}{suffix}", 2
        while target in taken:
            target, number = output / f"{source.stem}_{number}{suffix}", number + 1
        taken.add(target)
        targets[name] = target
    return targets
