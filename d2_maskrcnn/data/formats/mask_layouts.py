"""Find folders of PNG masks beside folders of images, by the names of the files in them.

Three layouts are known: one index mask per image (``PNGImages/a.png``, ``PedMasks/a_mask.png``), one mask per object in
the folder of its image (``a/images/a.png``, ``a/masks/*.png``), and one mask per object in a folder of masks
(``images/a.jpg``, ``masks/a/*.png`` or ``masks/a_0.png``).
"""

import re
from collections.abc import Iterable
from pathlib import Path

from d2_maskrcnn.data.image_reading import is_image_name

_MASKS = re.compile(r"mask|label|instance|annotation|gt|ground.?truth|seg", re.IGNORECASE)
_SUFFIX = re.compile(r"([_.-]?(masks?|labels?|labelids|instances?|instanceids|seg|gt)|[_.-]\d+)*$", re.IGNORECASE)


def find_mask_folders(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that have a folder of images and a folder of masks for them."""
    return [folder for folder in folders if mask_files(folder)]


def mask_files(folder: Path) -> dict[Path, list[Path]]:
    """Return the masks of each image of a folder with a mask folder, images without masks included.

    Args:
        folder: contains a folder of masks, recognized by its name, and a folder of images.

    Returns:
        An empty dict if it does not.
    """
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    masks = [path for path in subfolders if _MASKS.search(path.name)]
    best: dict[Path, list[Path]] = {}
    for images in subfolders:
        if images in masks:
            continue
        files = sorted(path for path in images.iterdir() if is_image_name(path) and path.is_file())
        for candidate in masks if files else []:
            of_image = _assign(files, candidate)
            if _assigned(of_image) > _assigned(best):
                best = of_image
    return best if _assigned(best) else {}


def _assigned(of_image: dict[Path, list[Path]]) -> int:
    return sum(map(bool, of_image.values()))


def _assign(images: list[Path], masks: Path) -> dict[Path, list[Path]]:
    """Assign the files of a mask folder to images by their names."""
    result: dict[Path, list[Path]] = {path: [] for path in images}
    by_stem = {path.stem: path for path in images}
    entries = sorted(masks.iterdir())
    files = [path for path in entries if path.is_file() and is_image_name(path)]
    for path in files:
        image = by_stem.get(path.stem) or by_stem.get(_SUFFIX.sub("", path.stem))
        if image is not None:
            result[image].append(path)
    for path in entries:
        if path.is_dir() and path.name in by_stem:
            result[by_stem[path.name]] += sorted(each for each in path.iterdir() if is_image_name(each))
    if not _assigned(result) and len(images) == 1:
        result[images[0]] = files
    return result
