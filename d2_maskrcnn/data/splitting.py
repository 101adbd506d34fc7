"""Split a dataset into parts such as train and val, with the same mix of classes in each.

As in iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", 2011) the images of the
rarest class are assigned first. Each group of images goes to the part where it brings the number of images and of the
objects of each of its classes closest to the requested shares.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tabulate import tabulate

from d2_maskrcnn.data.formats.dataset import Dataset, ImageFile
from d2_maskrcnn.errors import UserError, printable

NAMES = ("train", "val", "test")
BY_FOLDER = "folder"  # value of ``group_by`` that groups images by their folder


def split(
    dataset: Dataset,
    shares: Sequence[float],
    seed: int = 0,
    group_by: str | None = None,
    names: Sequence[str] = NAMES,
) -> list[Dataset]:
    """Split a dataset at random into parts, stratified by class.

    The same dataset, shares and seed give the same parts on every machine.

    Args:
        dataset: images, categories and annotations; stays unchanged. Earlier splits of its images are ignored.
        shares: share of the images of each part. They are divided by their sum, so that 80 and 20 mean the same as 0.8
            and 0.2.
        seed: of the random choice between equally good parts.
        group_by: images of one group stay in one part: ``folder``, or a regular expression that is searched in each
            image's name. The group is what its parentheses match, or the whole match without any. An image without a
            match is a group of its own.
        names: of the parts, which become the images' ``split``.

    Returns:
        One dataset per share, each with all categories.

    Raises:
        UserError: a share is not above 0, there are fewer groups than parts, or ``group_by`` is not a regular
            expression or matches nothing.
    """
    wanted = _normalized(shares, names)
    groups = image_groups(dataset.images, group_by)
    if len(set(groups)) < len(wanted):
        raise UserError(
            f"{dataset.source}: {len(dataset.images)} images in {len(set(groups))} groups cannot be split into "
            f"{len(wanted)} parts; expected at least one group for each"
        )
    part_of = assign_parts(_class_counts(dataset), np.array(groups), wanted, seed)
    return [_part(dataset, names[number], part_of == number) for number in range(len(wanted))]


def _normalized(shares: Sequence[float], names: Sequence[str]) -> np.ndarray:
    if not 2 <= len(shares) <= len(names):
        raise UserError(f"shares {list(shares)}: expected one for each of two or more of the parts {', '.join(names)}")
    for share in shares:
        if not 0 < share < float("inf"):
            raise UserError(f"shares {list(shares)}: {share} is not a number above 0")
    return np.array(shares, dtype=np.float64) / sum(shares)


def image_groups(images: Sequence[ImageFile], group_by: str | None) -> list[int]:
    """Return the number of each image's group; see :func:`split`.

    Raises:
        UserError: ``group_by`` is not a regular expression, or matches no image.
    """
    if group_by is None:
        return list(range(len(images)))
    if group_by == BY_FOLDER:
        keys: list[object] = [image.path.parent for image in images]
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise UserError(f"group_by {group_by!r}: not a regular expression ({error})") from error
        matches = [pattern.search(image.name) for image in images]
        if images and not any(matches):
            raise UserError(
                f"group_by {group_by!r} matches no image, such as {images[0].name!r}; expected 'folder' or a regular "
                "expression of which the part in parentheses names the group, such as '^(.+)_[0-9]+'"
            )
        keys = [(match and (match.groups() or match.group())) or number for number, match in enumerate(matches)]
    numbers: dict[object, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _class_counts(dataset: Dataset) -> np.ndarray:
    """Count the objects of each image and class, crowds included: (images, classes) int64."""
    row = {image.id: index for index, image in enumerate(dataset.images)}
    column = {category.id: index for index, category in enumerate(dataset.categories)}
    counts = np.zeros((len(row), len(column)), dtype=np.int64)
    for annotation in dataset.annotations:
        counts[row[annotation.image_id], column[annotation.category_id]] += 1
    return counts


def assign_parts(counts: np.ndarray, groups: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """Assign every image to a part so that images and the objects of each class match the shares.

    Args:
        counts: (I, C) objects of each class in each image.
        groups: (I,) int, numbered from 0; images of one group get the same part.
        shares: (P,) of the parts, with the sum 1.
        seed: of the order in which equally suitable groups are assigned.

    Returns:
        (I,) int64 number of each image's part.
    """
    sizes = np.bincount(groups)
    columns = np.column_stack([counts, counts > 0, np.ones(len(counts))])  # objects, images with any, images
    content = np.zeros((len(sizes), columns.shape[1]))  # of each group
    np.add.at(content, groups, columns)
    content /= np.maximum(content.sum(axis=0), 1)  # as shares of the whole dataset
    content[:, -1] *= np.sqrt(max(counts.shape[1], 1))  # the number of images weighs as much as all classes
    part = np.full(len(sizes), -1, dtype=np.int64)
    missing = shares[:, None] * content.sum(axis=0)  # (P, 2C + 1), what each part still needs
    classes = content[:, : counts.shape[1]] > 0  # (G, C)
    remaining = classes.sum(axis=0)  # groups of each class that are not assigned
    absent = np.ones((len(shares), counts.shape[1]), dtype=bool)  # classes of which a part has nothing yet
    for group in _order(content[:, : counts.shape[1]], seed).tolist():
        row, present = content[group], classes[group]
        used = np.flatnonzero(row)
        # How much the sum over the parts of missing**2 / share grows if the part gets this group.
        growth = (row[used] ** 2 - 2 * missing[:, used] * row[used]).sum(axis=1) / shares
        urgent = present & (absent.sum(axis=0) >= remaining)  # classes that would be absent from a part in the end
        lacking = absent[:, urgent].any(axis=1)
        chosen = int(np.where(lacking | ~lacking.any(), growth, np.inf).argmin())
        part[group] = chosen
        missing[chosen] -= row
        absent[chosen] &= ~present
        remaining -= present
    return _without_empty_parts(part, sizes, len(shares))[groups]


def _order(content: np.ndarray, seed: int) -> np.ndarray:
    """Order groups by their rarest class, those with most of it first, and those of equal content at random.

    Args:
        content: (G, C) share of the objects of each class in each group.
    """
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(content))
    frequency = (content > 0).sum(axis=0)  # groups with each class
    rarity = np.where(content > 0, frequency, len(content) + 1).min(axis=1, initial=len(content) + 1)
    return shuffled[np.lexsort((-content.max(axis=1, initial=0)[shuffled], rarity[shuffled]))]


def _without_empty_parts(part: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """Give each empty part the smallest group of the part with the most groups."""
    for empty in np.flatnonzero(np.bincount(part, minlength=count) == 0).tolist():
        donor = np.flatnonzero(part == np.bincount(part, minlength=count).argmax())
        part[donor[sizes[donor].argmin()]] = empty
    return part


def _part(dataset: Dataset, name: str, chosen: np.ndarray) -> Dataset:
    images = [replace(dataset.images[index], split=name) for index in np.flatnonzero(chosen).tolist()]
    ids = {image.id for image in images}
    annotations = [replace(each) for each in dataset.annotations if each.image_id in ids]
    categories = [replace(each) for each in dataset.categories]
    return Dataset(dataset.source, dataset.format, images, categories, annotations)


def describe_parts(parts: Sequence[Dataset]) -> str:
    """Return a table of the images and objects of each part, in all and for each class."""
    names = [part.images[0].split if part.images else "" for part in parts]
    counts = [_class_counts(part) for part in parts]
    rows: list[list[object]] = [["all", *_row([len(each) for each in counts], [int(each.sum()) for each in counts])]]
    for index, category in enumerate(parts[0].categories):
        images = [int((each[:, index] > 0).sum()) for each in counts]
        rows.append([category.name, *_row(images, [int(each[:, index].sum()) for each in counts])])
    headers = ["class", *(f"{name} {what}" for what in ("images", "objects") for name in names)]
    return tabulate([[printable(str(value)) for value in row] for row in rows], headers, disable_numparse=True)


def _row(images: list[int], objects: list[int]) -> list[str]:
    shares = [f" ({count / max(sum(objects), 1):.0%})" for count in objects]
    return [f"{count:,}" for count in images] + [f"{n:,}{share}" for n, share in zip(objects, shares, strict=True)]
