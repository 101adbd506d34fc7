"""Collect the files of a converted dataset, check that none replaces another, and write them."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from d2_maskrcnn.data.formats.dataset import Dataset, ImageFile
from d2_maskrcnn.data.formats.image_references import embedded_image
from d2_maskrcnn.errors import UserError


@dataclass
class Output:
    """Files to write, by their path relative to a folder.

    Attributes:
        folder: of the converted dataset.
        copy_images: whether images are copied instead of linked.
    """

    folder: Path
    copy_images: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, ImageFile] = field(default_factory=dict)

    def add(self, name: str, content: str | bytes) -> None:
        """Add an annotation file; text is encoded in UTF-8."""
        self.files[name] = content if isinstance(content, bytes) else content.encode("utf-8", "replace")

    def write(self, sources: set[Path], overwrite: bool = False, progress: bool = False) -> list[Path]:
        """Write all files, images first.

        Args:
            sources: files that are never replaced.
            overwrite: whether other files may be replaced.
            progress: whether a progress bar is shown.

        Returns:
            The annotation files.

        Raises:
            UserError: a file exists, is one of the sources, or cannot be written.
        """
        targets = self.check(sources, overwrite)
        names = tqdm(targets, "Writing", unit="file", leave=False, disable=None if progress else True)
        try:
            for name in names:
                targets[name].parent.mkdir(parents=True, exist_ok=True)
                if name in self.images:
                    self._place(self.images[name], targets[name])
                else:
                    _replace(targets[name], self.files[name])
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror or error}); choose another folder or free space"
            ) from error
        return [targets[name] for name in self.files]

    def check(self, sources: set[Path], overwrite: bool = False) -> dict[str, Path]:
        """Check that all files can be written; see :meth:`write`.

        Returns:
            Where each file goes, without images that lie there already.
        """
        targets = {name: self.folder / name for name in (*self.images, *self.files)}
        for name, image in self.images.items():
            if _place_of(targets[name]) == _place_of(image.path) and image.embedded_in is None:
                del targets[name]
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: a file; expected a folder, which is created if it does not exist")
        protected = {_place_of(path) for path in sources}
        for path in targets.values():
            if _place_of(path) in protected:
                raise UserError(f"{path}: belongs to the source, which is never changed; choose another output folder")
        existing = [path for path in targets.values() if os.path.lexists(path)]
        if existing and not overwrite:
            raise UserError(
                f"{existing[0]}: exists ({len(existing)} of {len(targets)} files do); choose another output folder, or "
                "set overwrite"
            )
        return targets

    def _place(self, image: ImageFile, target: Path) -> None:
        if image.embedded_in is not None:
            _replace(target, embedded_image(image.embedded_in))
            return
        temporary = _temporary(target)
        try:
            if self.copy_images:
                shutil.copy2(image.path, temporary)
            else:
                _link(image.path, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _link(path: Path, target: Path) -> None:
    try:
        target.symlink_to(path)
    except (OSError, NotImplementedError):  # file systems without links, and Windows without the permission
        shutil.copy2(path, target)


def _replace(path: Path, content: bytes) -> None:
    """Write a file atomically; a link of that name is replaced, not followed."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name[-100:]}.{os.getpid()}.tmp"


def _place_of(path: Path) -> Path:
    """Return where a file is, without following a link that the file itself is."""
    return Path(os.path.realpath(path.parent)) / path.name


def target_names(dataset: Dataset) -> dict[int, str]:
    """Return a name for each image, as ``split/a/b.jpg``, such that no two differ in their suffix only."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for image in dataset.images:
        path = PurePosixPath(image.split or ".", image.name)
        stem, count = path.with_suffix(""), 2
        if str(stem) in taken:
            stem = stem.with_name(f"{stem.name}_{path.suffix[1:]}")
        base = stem
        while str(stem) in taken:
            stem, count = base.with_name(f"{base.name}_{count}"), count + 1
        taken.add(str(stem))
        names[image.id] = f"{stem}{path.suffix}"
    return names
