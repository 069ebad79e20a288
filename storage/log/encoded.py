"""A commit on its way to the log: first encoded, then placed."""

from dataclasses import dataclass, field

from storage.format.codec import digest_of
from storage.format.commit import (
    HASH_TOP_SHIFT,
    HEADER_BYTES,
    CommitHeader,
    LayerMoves,
    Placed,
    Records,
)
from storage.format.entry import BLOCK_BYTES, OFFSET_GRAIN_BYTES, pack_b


@dataclass(slots=True)
class EncodedLayer:
    """Extents of one layer, an item each; offsets are relative to the packed or the raw part."""

    layer: int
    blocks: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    words_b: list[int] = field(default_factory=list)
    hash_tops: list[int] = field(default_factory=list)
    zeroes: list[tuple[int, int]] = field(default_factory=list)
    """(first, end): the zero ranges of the buffer, then its all-zero blocks."""

    def add(self, block: int, kind: int, offset: int, stored: bytes | memoryview, n: int) -> None:
        """Add one extent of `n` blocks."""
        digest = digest_of(stored)
        self.blocks.append(block)
        self.kinds.append(kind)
        self.offsets.append(offset)
        self.words_b.append(pack_b(len(stored), n, digest))
        self.hash_tops.append(digest >> HASH_TOP_SHIFT)


@dataclass(slots=True)
class EncodedCommit:
    """A commit that only lacks its place in the log."""

    layers: list[EncodedLayer]
    operations: list[bytes]
    packed: list[bytes | memoryview]
    packed_bytes: int
    raw: list[memoryview]
    moves: list[LayerMoves] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)

    def placed_bytes_max(self, align: int) -> int:
        """The most bytes that the commit takes at any place; a segment must have as many left."""
        extents = sum(len(layer.blocks) for layer in self.layers)
        zeroes = sum(len(layer.zeroes) for layer in self.layers)
        table = 24 * extents + 32 * zeroes + 32 * len(self.layers)
        table += sum(24 + len(operation) for operation in self.operations)
        table += sum(32 + 40 * len(moves.rows) for moves in self.moves) + 64 * len(self.placed)
        head = HEADER_BYTES + table + OFFSET_GRAIN_BYTES + self.packed_bytes
        return -(-head // BLOCK_BYTES) * BLOCK_BYTES + len(self.raw) * BLOCK_BYTES + align


@dataclass(slots=True)
class PlacedCommit:
    """A commit with its place: the bytes to write, and its records with final locations."""

    header: CommitHeader
    data: bytearray
    records: Records
