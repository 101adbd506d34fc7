"""Convert datasets between annotation tools: the public function over the :mod:`d2_maskrcnn.data.formats`."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from d2_maskrcnn.data.formats import FORMATS, read
from d2_maskrcnn.data.formats.cleaning import clean
from d2_maskrcnn.data.formats.dataset import Dataset, Dropped
from d2_maskrcnn.data.formats.detectron2_catalog import is_registered, read_registered
from d2_maskrcnn.data.formats.output import Output
from d2_maskrcnn.data.formats.tool_writers import TOOL_WRITERS
from d2_maskrcnn.data.formats.writers import WRITERS
from d2_maskrcnn.errors import UserError, did_you_mean, printable

TARGETS = {**WRITERS, **TOOL_WRITERS}


@dataclass(frozen=True)
class Conversion:
    """The result of :func:`convert`.

    Attributes:
        source: what was read, and its format, a key of :data:`d2_maskrcnn.data.formats.FORMATS` or "registered".
        output: the folder that was written.
        files: the annotation files in it.
        images, annotations, crowds: how many were written.
        categories: their names, in the order of the classes.
        dropped: what was left out, with reasons.
        notes: number of changes by kind.
        splits: number of images by split.
    """

    source: str
    format: str
    output: Path
    files: list[Path]
    images: int
    annotations: int
    crowds: int
    categories: list[str]
    dropped: list[Dropped]
    notes: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)

    def table(self) -> str:
        """Return a table of what was written, and of what was left out by kind and reason."""
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items() if name)
        rows = [
            ["source", f"{self.source} ({FORMATS.get(self.format, self.format)})"],
            ["images", f"{self.images}" + (f" ({splits})" if splits else "")],
            ["instances", f"{self.annotations}" + (f" ({self.crowds} of them crowds)" if self.crowds else "")],
            ["classes", f"{len(self.categories)}: {_shorten(', '.join(self.categories))}"],
        ]
        text = tabulate([[name, printable(value)] for name, value in rows], tablefmt="plain")
        if self.dropped:
            text += "\n\n" + tabulate(self._reasons(), ["dropped", "", "reason", "for example"], tablefmt="simple")
        if self.notes:
            text += "\n\n" + tabulate([[n, what] for what, n in self.notes.items()], ["changed", ""], tablefmt="simple")
        return text

    def _reasons(self) -> list[list[object]]:
        counts = Counter((each.kind, each.reason) for each in self.dropped)
        rows: list[list[object]] = []
        for (kind, reason), count in counts.most_common():
            examples = [each for each in self.dropped if (each.kind, each.reason) == (kind, reason)]
            first = f"{examples[0].where}{f' ({examples[0].detail})' if examples[0].detail else ''}"
            rows.append([count, kind, printable(reason), printable(_shorten(first))])
        return rows


def _shorten(text: str, length: int = 90) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 + 5 :]}"


def convert(
    source: str | os.PathLike[str] | Dataset,
    to: str,
    output: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    category: str = "object",
    category_attribute: str | None = None,
    copy_images: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Convert a dataset to another format. Everything that can be converted is; the rest is listed with reasons.

    Args:
        source: an annotation file or a folder in any of :data:`d2_maskrcnn.data.formats.FORMATS`, the name of a
            registered dataset, or a dataset in memory, which may be changed.
        to: "coco", "yolo", "labelme", "voc", "cvat" or "label-studio".
        output: folder to write; files of the source are never replaced.
        images: folder of the images; None searches near the annotations.
        category: name for objects without a category, such as those of PNG masks.
        category_attribute: the region attribute of VIA that contains the category; None chooses one.
        copy_images: whether images are copied; otherwise symbolic links refer to them where they lie.
        overwrite: whether other existing files may be replaced.
        progress: whether progress bars are shown.

    Raises:
        UserError: the source is in no known format, nothing of it can be used, or the output cannot be written.
    """
    if to not in TARGETS:
        raise UserError(f"unknown format {to!r}; expected one of {', '.join(TARGETS)}.{did_you_mean(to, TARGETS)}")
    dataset = load(source, images, category, category_attribute)
    notes = clean(dataset, progress)
    if not dataset.images:
        first = f": {dataset.dropped[0].where}: {dataset.dropped[0].reason}" if dataset.dropped else ""
        raise UserError(f"{dataset.source}: no image that can be used{first} ({len(dataset.dropped)} entries dropped)")
    target = Output(Path(output).expanduser(), copy_images)
    if to == dataset.format:
        _refuse_inside(target.folder, Path(dataset.source))
    before = len(dataset.dropped)
    TARGETS[to](dataset, target, notes)
    files = target.write(_source_files(dataset), overwrite, progress)
    lost = sum(each.kind == "annotation" for each in dataset.dropped[before:])
    crowds = sum(each.iscrowd for each in dataset.annotations) if to not in ("yolo", "voc") else 0
    return Conversion(
        dataset.source,
        dataset.format,
        target.folder,
        files,
        len(dataset.images),
        len(dataset.annotations) - lost,
        crowds,
        [each.name for each in dataset.categories],
        dataset.dropped,
        dict(notes),
        dict(Counter(image.split for image in dataset.images)),
    )


def _refuse_inside(output: Path, source: Path) -> None:
    """Refuse to write where the next conversion of the same source would read.

    Raises:
        UserError: ``output`` is the folder ``source`` or inside it.
    """
    if source.is_dir() and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(
            f"{output}: inside the source {source}, where it would be read as a part of the dataset; choose an output "
            "folder outside of it"
        )


def load(
    source: str | os.PathLike[str] | Dataset,
    images: str | os.PathLike[str] | None = None,
    category: str = "object",
    category_attribute: str | None = None,
) -> Dataset:
    """Read a dataset from a path or by the name under which it is registered; see :func:`convert`."""
    if isinstance(source, Dataset):
        return source
    path = Path(source).expanduser()
    if not path.exists() and is_registered(str(source)):
        return read_registered(str(source))
    return read(path, None if images is None else Path(images), category, category_attribute)


def _source_files(dataset: Dataset) -> set[Path]:
    """Return the files that a conversion must not replace: images, annotations, and where these are folders, all."""
    source = Path(dataset.source)
    files = {image.path for image in dataset.images}
    files |= {image.embedded_in for image in dataset.images if image.embedded_in}
    files |= set(dataset.files)
    if dataset.format in ("voc", "masks", "yolo"):
        folders = {path if path.is_dir() else path.parent for path in dataset.files}
        files |= {path for folder in folders for path in folder.rglob("*")}
    return files | ({source} if source.is_file() else set())
