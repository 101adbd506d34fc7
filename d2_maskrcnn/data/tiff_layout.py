"""Find the strips or tiles of a TIFF page, and copy some of them into a small TIFF file, without decoding them.

The small file has the page's tags, so whatever decodes the page decodes its parts to the same pixels. The layout is
that of TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf) and of BigTIFF, its variant with 64-bit
offsets (https://libtiff.gitlab.io/libtiff/specification/bigtiff.html).
"""

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

import numpy as np

TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # NumPy's names
SHORT, LONG = 3, 4

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, ROWS_PER_STRIP, PLANAR, PREDICTOR = 277, 278, 284, 317
STRIPS, TILES = (273, 279), (324, 325)  # offsets and sizes in bytes
TILE_WIDTH, TILE_HEIGHT = 322, 323
XMP, IMAGE_DEPTH, JPEG_TABLES, YCBCR = 700, 32997, 347, (529, 530, 531, 532)
RGB_PHOTOMETRIC, YCBCR_PHOTOMETRIC = 2, 6
UNCOMPRESSED, OLD_JPEG = 1, 6
# How samples are stored and what they mean: those above, FillOrder, T4Options, T6Options, ColorMap, InkSet,
# NumberOfInks, ExtraSamples, SampleFormat and LercParameters.
DECODING = (
    BITS, COMPRESSION, PHOTOMETRIC, 266, SAMPLES, PLANAR, 292, 293, PREDICTOR, 320, 332, 334, 338, 339, JPEG_TABLES,
    *YCBCR, 50674,
)  # fmt: skip
LAYOUT = (WIDTH, HEIGHT, ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT, IMAGE_DEPTH, *STRIPS, *TILES, ORIENTATION, XMP)
MAX_TAGS = 4096
MAX_BITS = 2**33  # of a segment's samples
STRIP_BYTES = 2**19  # uncompressed strips are divided into strips of about this size


class Tag(NamedTuple):
    """Type, number of values, and the values as they are stored."""

    kind: int
    length: int
    data: bytes


@dataclass(frozen=True)
class TiffPage:
    """A page that is divided into strips or tiles ("segments").

    Attributes:
        byte_order: ``<`` or ``>``.
        height, width: of the stored image, before its orientation is applied, in pixels.
        segment: (height, width) of a segment; strips are as wide as the image.
        offsets, sizes: (planes, rows, columns) int64, where each segment is and how many bytes it has, 0 for a segment
            that is left out because all its samples are 0. Images whose channels are stored together have one plane.
        tags: those that decoding needs.
        next_page: where the next page's tags are; 0 for the last page.
    """

    byte_order: str
    height: int
    width: int
    segment: tuple[int, int]
    offsets: np.ndarray
    sizes: np.ndarray
    tags: dict[int, Tag]
    next_page: int

    @property
    def tiled(self) -> bool:
        """Whether the segments are tiles."""
        return TILE_WIDTH in self.tags

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return _numbers(self.byte_order, self.tags[tag])[0] if tag in self.tags else default

    @property
    def samples(self) -> int:
        """Number of values per pixel."""
        return self.number(SAMPLES, 1)

    def same_grid(self, other: "TiffPage") -> bool:
        """Return whether another page has the same size and segments of the same size."""
        return (self.height, self.width, self.segment) == (other.height, other.width, other.segment)

    def is_complete(self, file: BinaryIO) -> bool:
        """Return whether all segments lie inside of the file."""
        return bool((self.offsets + self.sizes).max() <= file.seek(0, os.SEEK_END) and self.sizes.min() >= 0)

    def parts(self, file: BinaryIO, rows: slice, columns: slice, oriented: bool = False) -> list[list[bytes]]:
        """Copy a rectangle of segments into TIFF files.

        Args:
            rows, columns: of the segments.
            oriented: whether the files have the page's orientation, too.

        Returns:
            Rows of files, to be joined after decoding: usually one file, but one per segment if some are left out of
            the page, as then all their samples are 0.
        """
        rows, columns = (slice(each.start, min(each.stop, count))
                         for each, count in zip((rows, columns), self.sizes.shape[1:], strict=True))  # fmt: skip
        if self.sizes[:, rows, columns].all():
            return [[self._part(file, rows, columns, oriented)]]
        return [
            [self._part(file, slice(row, row + 1), slice(column, column + 1), oriented)
             for column in range(columns.start, columns.stop)]
            for row in range(rows.start, rows.stop)
        ]  # fmt: skip

    def _part(self, file: BinaryIO, rows: slice, columns: slice, oriented: bool) -> bytes:
        tags = {tag: value for tag, value in self.tags.items() if oriented or tag not in (ORIENTATION, XMP)}
        sizes = self.sizes[:, rows, columns].ravel()
        if not sizes.all():
            return self._write(rows, columns, self._zeros(), self._uncompressed(tags))
        data = []
        for offset, size in zip(self.offsets[:, rows, columns].flat, sizes, strict=True):
            file.seek(int(offset))
            data.append(file.read(int(size)))
        return self._write(rows, columns, data, tags)

    def _zeros(self) -> list[bytes]:
        """Return the uncompressed planes of a segment whose samples are all 0."""
        bits = self.number(BITS, 1) * (1 if len(self.sizes) > 1 else self.samples)
        return [bytes(-(-self.segment[1] * bits // 8) * self.segment[0])] * len(self.sizes)

    def _uncompressed(self, tags: dict[int, Tag]) -> dict[int, Tag]:
        kept = {tag: value for tag, value in tags.items() if tag not in (PREDICTOR, JPEG_TABLES, *YCBCR)}
        kept[COMPRESSION] = self._short(UNCOMPRESSED)
        if self.number(PHOTOMETRIC, 0) == YCBCR_PHOTOMETRIC:
            kept[PHOTOMETRIC] = self._short(RGB_PHOTOMETRIC)
        return kept

    def _write(self, rows: slice, columns: slice, data: Sequence[bytes], tags: dict[int, Tag]) -> bytes:
        height, width = self.segment
        offsets, sizes = TILES if self.tiled else STRIPS
        places = 8 + np.cumsum([0, *map(len, data)])
        own = {
            WIDTH: [min(columns.stop * width, self.width) - columns.start * width],
            HEIGHT: [min(rows.stop * height, self.height) - rows.start * height],
            offsets: places[:-1].tolist(),
            sizes: [len(each) for each in data],
        }
        own |= {TILE_WIDTH: [width], TILE_HEIGHT: [height]} if self.tiled else {ROWS_PER_STRIP: [height]}
        values = {tag: Tag(LONG, len(n), struct.pack(f"{self.byte_order}{len(n)}I", *n)) for tag, n in own.items()}
        return _write_tiff(self.byte_order, b"".join(data), {**tags, **values})

    def _short(self, value: int) -> Tag:
        return Tag(SHORT, 1, struct.pack(f"{self.byte_order}H", value))


def read_page(file: BinaryIO, offset: int | None = None) -> TiffPage | None:
    """Read the layout of a page.

    Args:
        offset: where its tags are; None for the first page.

    Returns:
        The page; None if the file is no TIFF, or its pixels cannot be decoded in parts.
    """
    try:
        order, tags, next_page = _read_tags(file, offset)
        return _divide(_describe(order, tags, next_page))
    except (KeyError, ValueError, IndexError, struct.error, OverflowError):  # damaged, or an unusual kind
        return None


def _read_tags(file: BinaryIO, offset: int | None) -> tuple[str, dict[int, Tag], int]:
    """Read the tags of a page: the byte order, the tags, and where the next page's tags are."""
    file.seek(0)
    header = file.read(16)
    order = {b"II": "<", b"MM": ">"}[header[:2]]
    big = {42: False, 43: True}[struct.unpack_from(f"{order}H", header, 2)[0]]
    number, entry, word = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    if offset is None:
        (offset,) = struct.unpack_from(order + word, header, 8 if big else 4)
    length = file.seek(0, os.SEEK_END)

    def read(start: int, count: int) -> bytes:
        file.seek(start)
        if start < 0 or count > length or len(data := file.read(count)) < count:
            raise ValueError(f"{count} bytes at {start} are not in the file")
        return data

    (count,) = struct.unpack(order + number, read(offset, struct.calcsize(order + number)))
    if count > MAX_TAGS:
        raise ValueError(f"{count} tags")
    size = struct.calcsize(order + entry)
    start = offset + struct.calcsize(order + number)
    entries = read(start, count * size + struct.calcsize(order + word))
    tags = {}
    for tag, kind, values, inline in struct.iter_unpack(order + entry, entries[: count * size]):
        used = values * TYPE_SIZES.get(kind, 1)
        if tag in DECODING or tag in LAYOUT:
            place = struct.unpack(order + word, inline)[0]
            tags[tag] = Tag(kind, values, inline[:used] if used <= len(inline) else read(place, used))
    return order, tags, struct.unpack(order + word, entries[count * size :])[0]


def _describe(order: str, tags: dict[int, Tag], next_page: int) -> TiffPage:
    """Arrange the segments of a page.

    Raises:
        KeyError: a tag is missing. ValueError: the page is of a kind that is not decoded in parts.
    """
    values = {tag: _numbers(order, value) for tag, value in tags.items() if value.kind in UNSIGNED}
    height, width = values[HEIGHT][0], values[WIDTH][0]
    if TILE_WIDTH in values:
        segment, where = (values[TILE_HEIGHT][0], values[TILE_WIDTH][0]), TILES
    else:
        segment, where = (min(values.get(ROWS_PER_STRIP, [height])[0], height), width), STRIPS
    bits, samples, compression, planar, _ = (
        values[tag][0] if tag in tags else 1 for tag in (BITS, SAMPLES, COMPRESSION, PLANAR, PHOTOMETRIC)
    )
    empty = min(height, width, *segment, bits, samples) < 1
    if empty or compression == OLD_JPEG or IMAGE_DEPTH in tags or math.prod(segment) * bits * samples > MAX_BITS:
        raise ValueError("not decoded in parts")
    planes = samples if planar == 2 else 1
    grid = (planes, -(-height // segment[0]), -(-width // segment[1]))
    count = grid[0] * grid[1] * grid[2]
    offsets, sizes = (np.array(values[tag][:count], np.int64) for tag in where)
    kept = {tag: value for tag, value in tags.items() if tag not in (WIDTH, HEIGHT, ROWS_PER_STRIP, *STRIPS, *TILES)}
    return TiffPage(order, height, width, segment, offsets.reshape(grid), sizes.reshape(grid), kept, next_page)


def _numbers(order: str, tag: Tag) -> list[int]:
    return np.frombuffer(tag.data, order + UNSIGNED[tag.kind], tag.length).tolist()


def _divide(page: TiffPage) -> TiffPage:
    """Divide the strips of an uncompressed page, which is often a single one, into smaller ones."""
    if page.tiled or page.number(COMPRESSION, 1) != UNCOMPRESSED or page.number(PHOTOMETRIC, 0) == YCBCR_PHOTOMETRIC:
        return page
    samples = 1 if len(page.sizes) > 1 else page.samples
    row_bytes = -(-page.width * page.number(BITS, 1) * samples // 8)
    rows, old = max(1, STRIP_BYTES // row_bytes), page.segment[0]
    if rows >= old or not page.sizes.all():
        return page
    if page.sizes.shape[1] > 1:  # several strips, which all have to be divided into equal parts
        rows = next(number for number in range(rows, 0, -1) if old % number == 0)
    tops = np.arange(0, page.height, rows)
    heights = np.minimum(rows, page.height - tops)
    offsets = page.offsets[:, tops // old, 0] + tops % old * row_bytes
    sizes = np.broadcast_to(heights * row_bytes, offsets.shape)
    return replace(page, segment=(rows, page.width), offsets=offsets[:, :, None], sizes=sizes[:, :, None])


def _write_tiff(order: str, data: bytes, tags: dict[int, Tag]) -> bytes:
    """Write a TIFF file of one page: the header, the segments, the values of the tags, and the tags."""
    start = 8 + len(data)
    values, entries = [b"\0" * (start % 2)], []
    place = start + start % 2
    for tag in sorted(tags):
        kind, count, content = tags[tag]
        inline = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack(f"{order}I", place)
        if len(content) > 4:
            values.append(content + b"\0" * (len(content) % 2))
            place += len(values[-1])
        entries.append(struct.pack(f"{order}HHI4s", tag, kind, count, inline))
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place)
    return b"".join([header, data, *values, struct.pack(f"{order}H", len(entries)), *entries, bytes(4)])
