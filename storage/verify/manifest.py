"""Manifests: the items that a stretch of a segment should hold, each with its hash. Pure work for a
worker thread.

Each batch of a segment, a commit or moved blocks, has the hashes of all its items: the header has
those of itself and of the record table, the table those of the extents. Paddings have no hash and
are never read.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np

from storage.errors import DamagedError
from storage.format import commit
from storage.format.codec import digest_of
from storage.format.commit import (
    HASH_TOP_SHIFT,
    HEADER_BYTES,
    CommitHeader,
    LayerExtents,
    Records,
)
from storage.format.entry import (
    CHECK_SHIFT,
    OFFSET_GRAIN_BYTES,
    OFFSET_MASK,
    SEGMENT_SHIFT,
    Words,
)

FULL_DIGEST = (1 << 64) - 1
HEADER_GRID_BYTES = 4096
"""Batches start at multiples of the commit alignment, which is this or a multiple of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A segment, and the pool that it belongs to."""

    segment: int
    pool_uuid: UUID


@dataclass(slots=True)
class Piece:
    """Items in a stretch of a segment, ascending: offsets, lengths and hashes; only the bits of a
    hash that are in `mask` are known."""

    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    mask: int = FULL_DIGEST

    @property
    def start(self) -> int:
        """Offset of the first item."""
        return self.offsets[0]

    @property
    def end(self) -> int:
        """Offset after the last item; items do not overlap."""
        return self.offsets[-1] + self.lengths[-1]

    def add(self, offset: int, length: int, digest: int) -> None:
        """Append an item."""
        self.offsets.append(offset)
        self.lengths.append(length)
        self.digests.append(digest)

    def cut(self, bytes_max: int) -> Iterator["Piece"]:
        """Split it into pieces of at most `bytes_max`; a longer item gets a piece of its own."""
        first = 0
        for i, (offset, length) in enumerate(zip(self.offsets, self.lengths, strict=True)):
            if offset + length - self.offsets[first] > bytes_max and i > first:
                yield self._slice(first, i)
                first = i
        if first < len(self.offsets):
            yield self._slice(first, len(self.offsets))

    def _slice(self, first: int, end: int) -> "Piece":
        return Piece(
            self.offsets[first:end], self.lengths[first:end], self.digests[first:end], self.mask
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One commit or batch of moved blocks: its header and the records of its table."""

    header: CommitHeader
    records: Records

    @property
    def start(self) -> int:
        """Its offset in the segment."""
        return self.header.offset

    @property
    def end(self) -> int:
        """Offset after its padding."""
        return self.header.offset + self.header.total_bytes

    def extents_at(self, offset: int) -> list[LayerExtents]:
        """The records of the extent at this offset, none if there is no extent."""
        found = []
        for extents in self.records.extents:
            rows = (_offsets(extents.a) == offset).nonzero()[0]
            if len(rows):
                found.append(
                    LayerExtents(
                        extents.layer, extents.blocks[rows], extents.a[rows], extents.b[rows],
                        extents.hash_tops[rows],
                    )
                )  # fmt: skip
        return found


@dataclass(slots=True)
class Manifest:
    """Successive batches, and all items of them that can be verified."""

    batches: list[Batch] = field(default_factory=list)
    piece: Piece = field(default_factory=Piece)
    bad: frozenset[int] = frozenset()
    """Offsets of the items that are bad in the bytes it was made of, or lie beyond them."""

    def bad_of(self, piece: Piece) -> list[int]:
        """Indexes of the items of a part of `self.piece` that are in `bad`."""
        if not self.bad:
            return []
        return [i for i, offset in enumerate(piece.offsets) if offset in self.bad]

    @property
    def end(self) -> int:
        """Offset after the last batch."""
        return self.batches[-1].end

    def batch_of(self, offset: int) -> Batch:
        """The batch in which an item lies."""
        return self.batches[bisect_right(self.batches, offset, key=lambda b: b.start) - 1]

    def add(self, header: CommitHeader, head: memoryview, table: memoryview) -> None:
        """Append a batch whose header and table are good.

        Raises:
            DamagedError: the table cannot be decoded, though its hash is right, or names bytes
                outside of the batch.
        """
        records = commit.decode_table(table)
        piece, start = self.piece, header.offset
        piece.add(start, HEADER_BYTES, digest_of(head))
        if header.table_bytes:
            piece.add(start + HEADER_BYTES, header.table_bytes, header.table_digest)
        for offset, length, digest in _extents(header, records):
            piece.add(offset, length, digest)
        self.batches.append(Batch(header, records))


def _offsets(a: Words) -> Words:
    return (a >> np.uint64(3) & np.uint64(OFFSET_MASK)) * np.uint64(OFFSET_GRAIN_BYTES)


def _extents(header: CommitHeader, records: Records) -> list[tuple[int, int, int]]:
    """(offset, length, hash) of the extents in a batch, ascending."""
    found: list[tuple[int, int, int]] = []
    for e in records.extents:
        here = (e.a >> np.uint64(SEGMENT_SHIFT)) == np.uint64(header.segment)
        a, b = e.a[here], e.b[here]
        digests = e.hash_tops[here] << np.uint64(HASH_TOP_SHIFT) | b >> np.uint64(CHECK_SHIFT)
        lengths = (b & np.uint64(0xFFFF)) + np.uint64(1)
        found += zip(_offsets(a).tolist(), lengths.tolist(), digests.tolist(), strict=True)
    found.sort()
    low, high = header.offset + HEADER_BYTES, header.offset + header.total_bytes
    if found and not low <= found[0][0] <= found[-1][0] + found[-1][1] <= high:
        raise DamagedError(f"a commit names bytes outside of itself: commit={header.number}")
    return found


def header_at(data: memoryview, offset: int, place: Place) -> CommitHeader | None:
    """The header of a batch at the start of `data`, which is at `offset`; None if there is none."""
    header = commit.decode_header(data) or commit.decode_header(data, commit.MOVED_MAGIC)
    if header is None or header.offset != offset or header.total_bytes < HEADER_BYTES:
        return None
    fits = header.segment == place.segment and header.pool_uuid == place.pool_uuid
    return header if fits else None


def read_manifest(data: memoryview, start: int, place: Place, end: int) -> Manifest:
    """The batches from `start` on, none past `end`, with good headers and tables in `data`, which
    is at `start`; the manifest says which of their items are bad. It may be empty.

    Raises:
        FormatVersionError: the batch was made by a newer Cenote.
    """
    made = Manifest()
    at = start
    while at - start + HEADER_BYTES <= len(data):
        rest = data[at - start :]
        header = header_at(rest, at, place)
        if header is None or at + header.total_bytes > end:
            break
        table = rest[HEADER_BYTES : HEADER_BYTES + header.table_bytes]
        if not add_batch(made, header, rest[:HEADER_BYTES], table):
            break
        at = made.end
    made.bad = frozenset(made.piece.offsets[i] for i in bad_items(data, start, made.piece))
    return made


def add_batch(made: Manifest, header: CommitHeader, head: memoryview, table: memoryview) -> bool:
    """Append a batch to a manifest; False if its table does not match its header."""
    if len(table) != header.table_bytes or digest_of(table) != header.table_digest:
        return False
    try:
        made.add(header, head, table)
    except DamagedError:
        return False
    return True


def bad_items(data: memoryview, start: int, piece: Piece) -> list[int]:
    """Indexes of the items that do not match `data`, which is at `start`. Cost: a hash of each."""
    mask = piece.mask
    return [
        i
        for i, (offset, length, digest) in enumerate(
            zip(piece.offsets, piece.lengths, piece.digests, strict=True)
        )
        if digest_of(data[offset - start : offset - start + length]) & mask != digest
    ]


def next_header(data: memoryview, start: int, place: Place) -> int | None:
    """Offset of the first batch in `data`, which is at `start`, a multiple of the grid; or None."""
    magics = (commit.MAGIC, commit.MOVED_MAGIC)
    whole = len(data) // HEADER_GRID_BYTES * HEADER_GRID_BYTES
    words = np.frombuffer(data[:whole], dtype="<u8")[:: HEADER_GRID_BYTES // 8]
    known = np.array([int.from_bytes(magic, "little") for magic in magics], dtype=np.uint64)
    for row in np.isin(words, known).nonzero()[0].tolist():
        at = row * HEADER_GRID_BYTES
        if header_at(data[at:], start + at, place) is not None:
            return int(start + at)
    return None
