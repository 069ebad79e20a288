"""The directory of one layer, in memory: where the base and the delta of each page lie on disk.

A snapshot that lives for an hour changes a few pages all over the volume. Whole chunks for each of
a thousand such layers would take gigabytes, so a chunk keeps only the rows in use while they are
few.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from storage.format.entry import SEGMENT_SHIFT, Words
from storage.format.pages import CHUNK_PAGES, CHUNK_SHIFT

SPARSE_ROWS_MAX = 256
"""A row in use takes 34 bytes; with more rows the whole chunk, 32 KiB, is not much larger, and its
rows are found faster."""

FEW_SLOTS = 16
"""Up to so many bits are set one by one, which is faster than setting them in bulk."""

PAGES_MAX = 1 << 30
"""Pages of the largest volume."""


class Chunk:
    """1,024 rows of four words: base A, base B, delta A, delta B. Immutable."""

    __slots__ = ("_rows", "_slots")

    def __init__(self, rows: Words):
        used = _in_use(rows)
        self._slots: array[int] | None = None
        self._rows = rows
        if len(used) <= SPARSE_ROWS_MAX:
            self._slots = array("H", used.astype("<u2").tobytes())
            self._rows = rows[used]

    def row(self, slot: int) -> list[int] | None:
        """One row, or None when the layer stores nothing of that page."""
        at = slot
        if self._slots is not None:
            at = bisect_left(self._slots, slot)
            if at == len(self._slots) or self._slots[at] != slot:
                return None
        row: list[int] = self._rows[at].tolist()
        return row if row[0] or row[2] else None

    def used(self) -> NDArray[np.int64]:
        """The slots in use, ascending."""
        if self._slots is None:
            return _in_use(self._rows)
        return np.array(self._slots, dtype=np.int64)

    def without_base(self) -> NDArray[np.int64]:
        """The slots in use that have a delta and no base, ascending."""
        alone = (self._rows[:, 0] == 0) & (self._rows[:, 2] != 0)
        slots: NDArray[np.int64] = alone.nonzero()[0]
        return slots if self._slots is None else self.used()[slots]

    def lying_in(self, segments: Words) -> NDArray[np.int64]:
        """The slots whose base or delta lies in one of these segments, ascending."""
        slots = lying_in(self._rows, segments)
        return slots if self._slots is None else self.used()[slots]

    def whole(self) -> Words:
        """A copy of all rows, shape (1024, 4)."""
        if self._slots is None:
            return self._rows.copy()
        rows = np.zeros((CHUNK_PAGES, 4), dtype=np.uint64)
        rows[self.used()] = self._rows
        return rows


class Directory:
    """The chunks of one layer in which anything is stored."""

    __slots__ = ("_chunks", "located")

    def __init__(self) -> None:
        self._chunks: dict[int, Chunk] = {}
        self.located: dict[int, tuple[int, int]] = {}
        """Words A and B of each chunk as last written."""

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def get(self, page: int) -> list[int] | None:
        """[base A, base B, delta A, delta B], or None when the layer stores nothing of the page."""
        chunk = self._chunks.get(page >> CHUNK_SHIFT)
        return None if chunk is None else chunk.row(page & (CHUNK_PAGES - 1))

    def chunk(self, number: int) -> Words:
        """A copy of a chunk, shape (1024, 4); all zeroes when the directory lacks it."""
        chunk = self._chunks.get(number)
        return np.zeros((CHUNK_PAGES, 4), dtype=np.uint64) if chunk is None else chunk.whole()

    @property
    def has_bases(self) -> bool:
        """Whether each page has a base, so that none needs a base of an ancestor."""
        return not any(len(chunk.without_base()) for chunk in self._chunks.values())

    def without_base(self) -> Iterator[int]:
        """Yield the pages that have a delta and no base, in no order."""
        for number, chunk in self._chunks.items():
            for slot in chunk.without_base().tolist():
                yield (number << CHUNK_SHIFT) + slot

    def count(self) -> int:
        """The number of pages of which the layer stores anything."""
        return sum(len(chunk.used()) for chunk in self._chunks.values())

    def slots_in(self, number: int, segments: Words) -> NDArray[np.int64]:
        """The slots of a chunk whose base or delta lies in one of these segments, ascending."""
        return self._chunks[number].lying_in(segments)

    def chunks(self) -> Iterable[tuple[int, Chunk]]:
        """All chunks, in no order."""
        return self._chunks.items()

    def put(self, number: int, rows: Words, located: tuple[int, int]) -> None:
        """Set a chunk, stored at the words `located`; the caller does not change `rows` later."""
        self._chunks[number] = Chunk(rows)
        self.located[number] = located

    def drop(self, number: int) -> None:
        """Remove a chunk in which nothing is stored any more."""
        self._chunks.pop(number, None)
        self.located.pop(number, None)

    def pages(self, low: int = 0, end: int = PAGES_MAX) -> Iterator[int]:
        """Yield every page in [low, end) of which something is stored, ascending."""
        wanted = range(low >> CHUNK_SHIFT, (end - 1 >> CHUNK_SHIFT) + 1)
        if len(self._chunks) < len(wanted):
            numbers = sorted(number for number in self._chunks if number in wanted)
        else:
            numbers = [number for number in wanted if number in self._chunks]
        for number in numbers:
            first = number << CHUNK_SHIFT
            for slot in self._chunks[number].used().tolist():
                if low <= first + slot < end:
                    yield first + slot


class PageSet:
    """A set of page numbers, one bit each: 160 bytes for the pages of 4 GiB."""

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}

    def __contains__(self, page: int) -> bool:
        bits = self._bits.get(page >> CHUNK_SHIFT, 0)
        return bool(bits >> (page & CHUNK_PAGES - 1) & 1)

    def add(self, pages: Iterable[int]) -> None:
        """Add page numbers."""
        for page in pages:
            number = page >> CHUNK_SHIFT
            self._bits[number] = self._bits.get(number, 0) | 1 << (page & CHUNK_PAGES - 1)

    def add_stored(self, directory: Directory) -> None:
        """Add the pages of which a layer stores anything. Cost: 3 to 10 us for each chunk."""
        for number, chunk in directory.chunks():
            used = chunk.used()
            if len(used) <= FEW_SLOTS:
                self.add((used + (number << CHUNK_SHIFT)).tolist())
                continue
            flags = np.zeros(CHUNK_PAGES, dtype=np.uint8)
            flags[used] = 1
            bits = int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
            self._bits[number] = self._bits.get(number, 0) | bits

    def between(self, low: int, end: int) -> Iterator[int]:
        """Yield the pages in [low, end), ascending."""
        first, last = low >> CHUNK_SHIFT, end - 1 >> CHUNK_SHIFT
        for number in sorted(number for number in self._bits if first <= number <= last):
            packed = self._bits[number].to_bytes(CHUNK_PAGES // 8, "little")
            flags = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
            start = number << CHUNK_SHIFT
            flags = flags[max(low - start, 0) : max(end - start, 0)]
            for at in flags.nonzero()[0].tolist():
                yield max(low, start) + at


def lying_in(rows: Words, segments: Words) -> NDArray[np.int64]:
    """Indexes of the `rows`, shape (n, 4), that have a base or a delta in one of these segments."""
    numbers = rows[:, 0::2] >> np.uint64(SEGMENT_SHIFT)
    lies = np.isin(numbers, segments)
    found: NDArray[np.int64] = (lies[:, 0] | lies[:, 1]).nonzero()[0]
    return found


def _in_use(rows: Words) -> NDArray[np.int64]:
    used: NDArray[np.int64] = ((rows[:, 0] | rows[:, 2]) != 0).nonzero()[0]
    return used
