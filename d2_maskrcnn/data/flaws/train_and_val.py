"""Check that the parts of a dataset, such as train and val, belong together and share no images."""

import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from d2_maskrcnn.data.flaws.coco_table import CocoTable
from d2_maskrcnn.data.flaws.find_flaws import Findings
from d2_maskrcnn.data.flaws.flaw import Flaw

SIMILAR = 0.97  # correlation of two thumbnails of 16x16 pixels from which their images are near-duplicates
_FLAT = 2.0  # standard deviation of gray values below which a thumbnail shows nothing to compare
_CHUNK = 4096  # thumbnails compared at a time


def check_parts(first: Findings, second: Findings, name: str) -> Iterator[Flaw]:
    """Yield categories of ``second`` that differ from those of ``first``, and images that both have.

    Args:
        name: of ``first``, for the messages.
    """
    yield from _check_categories(first, second, name)
    yield from check_shared_images(first, second, name)


def check_shared_images(first: Findings, second: Findings, name: str) -> Iterator[Flaw]:
    """Yield the images of ``second`` that ``first``, called ``name``, has too, or almost; thumbnails need decoding."""
    shared = _shared(first, second)
    remedy = "remove them from one part: results on images that were trained on are too good"

    def describe(pairs: dict[int, int], index: int) -> str:
        return f"{second.table.images[index]['file_name']} and {first.table.images[pairs[index]]['file_name']}"

    yield from second.table.image_flaw(
        "image-shared", list(shared), f"images shared with {name}", remedy, lambda i: describe(shared, i), "warning"
    )
    similar = {index: other for index, other in _similar(first, second).items() if index not in shared}
    yield from second.table.image_flaw(
        "image-near-shared",
        list(similar),
        f"images almost equal to one of {name}",
        "keep such images in one part (`d2-maskrcnn split` groups images): results on them are too good",
        lambda i: describe(similar, i),
        "warning",
    )


def _check_categories(first: Findings, second: Findings, name: str) -> Iterator[Flaw]:
    expected, actual = category_names(first.table), category_names(second.table)
    difference = first_difference(expected, actual)
    if difference is None or not expected or not actual:
        return
    place, there, here = difference
    yield Flaw(
        "categories-differ",
        "error",
        1,
        f"list of categories other than that of {name}",
        (f"number {place} by id is {here}, and {there} in {name}",),
        "expected the same 'categories' in all parts",
        structural=True,
    )


def category_names(table: CocoTable) -> tuple[str, ...]:
    """Return the names of the categories by ascending id, which is the order of the model's classes."""
    return tuple(each["name"] for each in sorted(table.categories, key=lambda category: category["id"]))


def first_difference(expected: Sequence[str], actual: Sequence[str]) -> tuple[int, str, str] | None:
    """Return the place, from 1, of the first name that differs between two lists, and both names; None if none does."""
    for index, (there, here) in enumerate(zip_longest(expected, actual)):
        if there != here:
            return index + 1, "none" if there is None else repr(there), "none" if here is None else repr(here)
    return None


def _shared(first: Findings, second: Findings) -> dict[int, int]:
    """Return the images of ``second`` with the path or content of one of ``first``: index -> index there."""
    paths = {os.path.abspath(path): index for index, path in first.files.paths.items()}
    digests = {digest: index for index, digest in first.files.digests.items()}
    pairs = {}
    for index, path in second.files.paths.items():
        other = paths.get(os.path.abspath(path))
        other = digests.get(second.files.digests.get(index, b"")) if other is None else other
        if other is not None:
            pairs[index] = other
    return pairs


def _similar(first: Findings, second: Findings) -> dict[int, int]:
    """Return the images of ``second`` whose thumbnail correlates with one of ``first``: index -> index there."""
    (known, vectors), (indices, others) = _vectors(first), _vectors(second)
    pairs: dict[int, int] = {}
    if not len(known):
        return pairs
    for start in range(0, len(indices), _CHUNK):
        correlation = others[start : start + _CHUNK] @ vectors.T
        best = correlation.argmax(axis=1)
        rows = np.flatnonzero(correlation[np.arange(len(best)), best] >= SIMILAR)
        pairs.update({int(indices[start + row]): int(known[best[row]]) for row in rows.tolist()})
    return pairs


def _vectors(findings: Findings) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (n,) of images and their thumbnails as vectors (n, S * S) of mean 0 and length 1."""
    thumbnails = findings.files.thumbnails
    if not thumbnails:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)
    index = np.array(list(thumbnails), dtype=np.int64)
    vectors = np.array([each.reshape(-1) for each in thumbnails.values()], dtype=np.float32)
    detailed = vectors.std(axis=1) >= _FLAT
    vectors = vectors[detailed] - vectors[detailed].mean(axis=1, keepdims=True)
    return index[detailed], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
