"""Write images to files."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from d2_maskrcnn.errors import UserError, one_line
from d2_maskrcnn.video.frame import Frame
from d2_maskrcnn.video.sinks.output_paths import check_target, identify
from d2_maskrcnn.video.sources.images import has_media_suffix
from d2_maskrcnn.visualization.encoding import encode_image
from d2_maskrcnn.weights.atomic import atomic_write_bytes

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageFiles:
    """Write each image to a file of the same base name; equal base names get a number.

    Args:
        names: paths of the input images.
        output: a folder, or for one image a file.
        overwrite: whether existing files may be replaced.
        label: what the user calls ``output``, for messages.
        inputs: more files that are never replaced, such as the weights.

    Attributes:
        problems: the messages about images that are too large for the format of their file.

    Raises:
        UserError: a file exists, isn't writable, or would replace an input.
    """

    def __init__(
        self, names: Sequence[str], output: Path, overwrite: bool, label: str = "Output", inputs: Sequence[str] = ()
    ) -> None:
        self._targets = _targets(names, output, label)
        self.problems: list[str] = []
        kept = identify([*names, *inputs])
        for target in self._targets.values():
            check_target(target, overwrite, label, kept)

    @property
    def paths(self) -> list[Path]:
        """The files that are written."""
        return list(self._targets.values())

    def write(self, frame: Frame) -> None:
        """Write one image; one that is too large for its format is reported and left out.

        Raises:
            UserError: it cannot be written.
        """
        target = self._targets[frame.name]
        try:
            data = encode_image(frame.image, target)
        except UserError as error:
            logger.error("%s", one_line(error))
            self.problems.append(str(error))
            return
        atomic_write_bytes(target, data, sync=False)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _targets(names: Sequence[str], output: Path, label: str) -> dict[str, Path]:
    if len(names) == 1 and output.suffix.lower() in SUFFIXES and not output.is_dir():
        return {names[0]: output}
    looks_like_file = has_media_suffix(output) or re.fullmatch(r"\.[A-Za-z]\w{1,4}", output.suffix)
    if not output.exists() and looks_like_file and len(names) == 1:
        raise UserError(f"{label} {output}: expected a folder, or a file that ends in {', '.join(SUFFIXES)}.")
    if (output.exists() or output.suffix.lower() in SUFFIXES) and not output.is_dir():
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
