"""Check that the parts of a dataset, such as train and val, belong together and share no images."""

import os
from collections.abc import Iterator

import numpy as np

from d2_maskrcnn.data.flaws.finding import Findings
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
    expected, actual = _names(first), _names(second)
    if expected == actual or not expected or not actual:
        return
    length = max(len(expected), len(actual))
    pairs = zip(expected + ["none"] * (length - len(expected)), actual + ["none"] * (length - len(actual)), strict=True)
    place, (there, here) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    yield Flaw(
        "categories-differ",
        "error",
        1,
        f"list of categories other than that of {name}",
        (f"number {place + 1} by id is {here!r} here and {there!r} there",),
        "expected the same 'categories' in all parts",
        structural=True,
    )


def _names(findings: Findings) -> list[str]:
    return [each["name"] for each in sorted(findings.table.categories, key=lambda category: category["id"])]


def _shared(first: Findings, second: Findings) -> dict[int, int]:
    """Return the images of ``second`` with the path or content of one of ``first``: index -> index there."""
    paths = {os.path.realpath(path): index for index, path in first.files.paths.items()}
    digests = {digest: index for index, digest in first.files.digests.items()}
    pairs = {}
    for index, path in second.files.paths.items():
        other = paths.get(os.path.realpath(path))
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
    index = np.array(list(thumbnails), dtype=np.int64)
    vectors = np.array([each.reshape(-1) for each in thumbnails.values()], dtype=np.float32).reshape(len(index), -1)
    if not len(index):
        return index, vectors
    detailed = vectors.std(axis=1) >= _FLAT
    vectors = vectors[detailed] - vectors[detailed].mean(axis=1, keepdims=True)
    return index[detailed], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
