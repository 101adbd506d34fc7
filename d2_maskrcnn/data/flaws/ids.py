"""Check that the ids and names of a COCO JSON are unique and used, and that references are to listed entries."""

from collections.abc import Iterable, Iterator

import numpy as np

from d2_maskrcnn.data.flaws.coco_table import CocoTable, repeated
from d2_maskrcnn.data.flaws.flaw import Flaw

IMBALANCE = 100  # objects of the most frequent category per object of the rarest; above, a note
RARE = 10  # objects of a category; below, a note


def check_not_empty(table: CocoTable, train: bool) -> Iterator[Flaw]:
    """Yield a flaw for a file without images, without categories or, to train on it, without objects."""
    for entries, rows in (("images", table.listed_images), ("categories", table.listed_categories)):
        if not len(rows):
            yield Flaw(f"no-{entries}", "error", 0, entries, (), "expected at least 1")
    if train and not len(table.annotations):
        yield Flaw("no-annotations", "error", 0, "annotations", (), "expected at least 1")
    elif train and table.is_crowd.all():
        what = "annotations that are not crowds (iscrowd 0)"
        yield Flaw("no-annotations", "error", 0, what, (), "expected at least 1 to train on")


def check_ids(table: CocoTable, evaluate: bool) -> Iterator[Flaw]:
    """Yield repeated ids and names, and references to images and categories that are not listed."""
    yield from _repeated_ids(table, "images", "image", table.image_ids)
    yield from _repeated_ids(table, "annotations", "annotation", table.ids)
    yield from _repeated_ids(table, "categories", "category", table.category_ids)
    yield from table.category_flaw(
        "category-name-repeated",
        repeated(np.array([category["name"] for category in table.categories])),
        "categories with the name of another category",
        "rename one, or delete it if it is only the supercategory of the others",
        lambda index: str(table.categories[index]["name"]),
    )
    yield from table.image_flaw(
        "image-repeated",
        repeated(np.array([image["file_name"] for image in table.images])),
        "images with the file_name of another image",
        "annotations of one image under two ids are seen as two images: merge them",
        severity="warning",
    )
    yield from _check_references(table)
    if evaluate:
        yield from table.annotation_flaw(
            "annotation-id-zero",
            table.ids == 0,
            "annotations with the id 0",
            "COCO's metrics use 0 for 'not matched' and count the object as a false negative: number from 1",
            severity="warning",
        )


def _repeated_ids(table: CocoTable, entries: str, noun: str, ids: np.ndarray) -> Iterable[Flaw]:
    what = f"{entries} with the id of another {noun}"
    return table.flaw(
        entries, f"{noun}-id-repeated", repeated(ids), what, "expected each one once", lambda index: str(ids[index])
    )


def _check_references(table: CocoTable) -> Iterator[Flaw]:
    yield from table.annotation_flaw(
        "image-unknown",
        np.isin(table.image_of, table.listed_images, invert=True),
        "annotations of an image that 'images' does not list",
        "add the image or delete the annotations",
        lambda i: f"annotation {table.ids[i]}: image_id {table.image_of[i]}",
    )
    yield from table.annotation_flaw(
        "category-unknown",
        np.isin(table.category_of, table.listed_categories, invert=True),
        "annotations of a category that 'categories' does not list",
        f"the ids listed are {_ranges(table.listed_categories)}",
        lambda i: f"annotation {table.ids[i]}: category_id {table.category_of[i]}",
    )


def check_categories(table: CocoTable) -> Iterator[Flaw]:
    """Yield categories without a name, with easily confused names, without objects, and of very different size."""
    names = [category["name"] for category in table.categories]
    blank = [index for index, name in enumerate(names) if not name.strip()]
    yield from table.category_flaw(
        "category-unnamed", blank, "categories whose name is blank", "give each one a name", severity="warning"
    )
    folded = repeated(np.array([" ".join(name.casefold().split()) for name in names]))
    yield from table.category_flaw(
        "category-name-similar",
        np.setdiff1d(folded, [*repeated(np.array(names)), *blank]),
        "categories whose name differs from another one's in case or spaces alone",
        "merge them if they are the same class",
        severity="warning",
    )
    counts = table.objects_per_category()
    if counts.any():
        yield from _check_balance(table, counts)


def _check_balance(table: CocoTable, counts: np.ndarray) -> Iterator[Flaw]:
    def describe(index: int) -> str:
        return f"{table.categories[index]['name']!r}: {counts[index]:,}"

    yield from table.category_flaw(
        "category-unused",
        counts == 0,
        "categories without objects",
        "delete them, or annotate some: the model cannot learn them",
        severity="note",
    )
    most = int(counts.max())
    yield from table.category_flaw(
        "class-imbalance",
        (counts > 0) & (counts * IMBALANCE < most),
        f"categories with less than 1/{IMBALANCE} of the objects of {table.categories[counts.argmax()]['name']!r} "
        f"({most:,})",
        "annotate more of them, or repeat their images: DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler",
        describe,
        severity="note",
    )
    yield from table.category_flaw(
        "category-rare",
        (counts > 0) & (counts < RARE),
        f"categories with fewer than {RARE} objects",
        "annotate more of them: a model needs dozens, and their AP says little",
        describe,
        severity="note",
    )


def check_empty_images(table: CocoTable) -> Iterator[Flaw]:
    """Yield images without annotations, if there are any annotations."""
    used = np.bincount(table.image_index[table.image_index >= 0], minlength=len(table.images))
    yield from table.image_flaw(
        "image-empty",
        (used == 0) & (len(table.annotations) > 0),
        "images without annotations",
        "right if they show no objects; training leaves them out while DATALOADER.FILTER_EMPTY_ANNOTATIONS is on",
        severity="note",
    )


def check_repeated_annotations(table: CocoTable) -> Iterator[Flaw]:
    """Yield annotations with the image, category, box and segmentation of an earlier one."""
    rows = np.column_stack([table.image_of, table.category_of, table.is_crowd, np.nan_to_num(table.boxes, nan=-1.0)])
    with np.errstate(over="ignore", invalid="ignore"):
        keys = sum(np.sqrt(weight) * rows[:, column] for column, weight in enumerate((2, 3, 5, 7, 11, 13, 17)))
    candidates = np.unique(keys, return_inverse=True, return_counts=True)
    seen: set[tuple[bytes, str]] = set()
    bad = []
    for index in np.flatnonzero(candidates[2][candidates[1].reshape(-1)] > 1).tolist():
        key = (rows[index].tobytes(), repr(table.annotations[index].get("segmentation")))
        if key in seen:
            bad.append(index)
        seen.add(key)
    yield from table.annotation_flaw(
        "annotation-repeated",
        bad,
        "annotations equal to another one",
        "delete them: the model detects one object, the other counts as a false negative",
        table.describe_box,
        severity="warning",
    )


def _ranges(ids: np.ndarray) -> str:
    ids = np.unique(ids)
    if len(ids) > 2 and ids[-1] - ids[0] == len(ids) - 1:
        return f"{ids[0]} to {ids[-1]}"
    shown = ", ".join(map(str, ids[:10]))
    return (shown or "none") + (", ..." if len(ids) > 10 else "")
