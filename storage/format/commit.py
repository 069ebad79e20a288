r"""A commit: one atomic, checksummed, numbered append to the log.

Format version 1, little-endian; offsets and sizes in bytes. A commit starts on a
multiple of the pool's commit alignment: header, record table, zeros up to a multiple of
64, payload, zeros up to the alignment.

    offset  size  field            meaning
         0     8  magic            b"CENCOMIT"
         8     2  version          u16; newer is refused
        10     2  flags            u16, zero
        12     4  table_bytes      u32, size of the record table that follows the header
        16    16  pool_uuid        refuses another pool's commit
        32     8  number           u64, rises by one per commit
        40     8  segment          u64, the segment it was written to
        48     4  offset           u32, and where in it: a misdirected write does not match
        52     4  total_bytes      u32, whole commit with padding
        56     8  epoch            u64, of the daemon that wrote it
        64     8  durable_through  u64, all was durable through this commit when it was written (R3)
        72     8  previous         u64, checksum field of the header before it (R2)
        80     8  table_digest     u64, xxh3_64 of the record table
        88    32  zero             zeros
       120     8  checksum         u64, xxh3_64 of bytes 0..119

A record is a header and a body, padded with zeros to a multiple of 8:

    offset  size  field            meaning
         0     2  type             u16
         2     2  flags            u16, bit 0: a reader that does not know the type may skip it
         4     4  body_bytes       u32, without the padding
         8     8  layer            u64, or 0

    type 1  EXTENTS    rows of 24: u64 first block | top 24 bits of xxh3_64 << 40, word A, word B
    type 2  ZEROES     rows of 16: u64 first block, u64 blocks
    type 3  OPERATION  msgpack, see `storage.catalogue.catalogue`
    type 4  ANNOUNCE   u64 segment, then its copies, 8 bytes each: u16 member, u16 1, u32 slot
    type 5  MOVES      u64 count, then rows of 40: u64 first block | blocks << 56, then word A and
                       word B of where the first block was and of where it is now (R11); stored
                       as forty planes of `count` bytes, as lz4 if the body is shorter than they
    type 6  PLACED     u64 segment, u64 bytes used, then its copies as in ANNOUNCE: payload that
                       moves name; it was flushed before this commit was written (R13)

Replay applies the records of a commit by type: PLACED first, then ZEROES, EXTENTS, MOVES, and
then the other types. A move applies to a block only if the layer's own entry of the block still
equals the old words exactly. A commit is atomic: it counts when header, table and payload are good.

Moved blocks lie in segments of their own. Each batch of them also has a header and a record table,
with EXTENTS alone, so that the segment itself tells what it holds. These headers are not part of
the chain: the magic is b"CENMOVED", number and previous are 0.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
from typing_extensions import Buffer

from storage.errors import DamagedError, FormatVersionError
from storage.format import codec
from storage.format.codec import digest_of
from storage.format.entry import (
    CHECK_SHIFT,
    INDEX_STEP,
    KIND_MASK,
    LZ4,
    OFFSET_GRAIN_BYTES,
    OFFSET_MASK,
    RAW,
    SEGMENT_SHIFT,
    Words,
)
from storage.format.pages import PAGE_BLOCKS
from storage.format.superblock import Copy

HEADER_BYTES = 128
VERSION = 1
MAGIC = b"CENCOMIT"
MOVED_MAGIC = b"CENMOVED"

EXTENTS = 1
ZEROES = 2
OPERATION = 3
ANNOUNCE = 4
MOVES = 5
PLACED = 6
SKIPPABLE = 1

COMMIT_BYTES_MAX = 16 << 20
"""No commit is larger; a length field that claims more is damage (R18). Buffers are 4 MiB."""

HASH_TOP_SHIFT = 40
BLOCK_NUMBER_MASK = (1 << 40) - 1
"""A volume has at most 2**40 blocks, 4 PiB."""

_HEADER = struct.Struct("<8sHHI16sQQIIQQQQ32xQ")
_RECORD = struct.Struct("<HHIQ")
_ANNOUNCE = struct.Struct("<Q")
_PLACED = struct.Struct("<QQ")
_COPY = struct.Struct("<HHI")
assert _HEADER.size == HEADER_BYTES
assert _RECORD.size == 16


@dataclass(frozen=True, slots=True)
class CommitHeader:
    """A decoded header; the table above defines each field."""

    pool_uuid: UUID
    number: int
    segment: int
    offset: int
    total_bytes: int
    table_bytes: int
    epoch: int
    durable_through: int
    previous: int
    table_digest: int
    checksum: int = 0


@dataclass(frozen=True, slots=True)
class LayerExtents:
    """The extents that one commit stores for one layer; u64 arrays, shape (extents,)."""

    layer: int
    blocks: Words
    a: Words
    b: Words
    hash_tops: Words


MOVE_COUNT_SHIFT = 56


@dataclass(frozen=True, slots=True)
class LayerMoves:
    """Moved blocks of one layer; `rows` has shape (n, 5), u64, as in the table above."""

    layer: int
    rows: Words


@dataclass(frozen=True, slots=True)
class Placed:
    """A segment outside the log that moves name, and its used bytes."""

    segment: int
    used_bytes: int
    copies: tuple[Copy, ...]


@dataclass(slots=True)
class Records:
    """The record table of one commit, decoded."""

    extents: list[LayerExtents] = field(default_factory=list)
    zeroes: list[tuple[int, int, int]] = field(default_factory=list)
    """(layer, first block, blocks)"""
    operations: list[bytes] = field(default_factory=list)
    announced: list[tuple[int, tuple[Copy, ...]]] = field(default_factory=list)
    """(segment, its copies)"""
    moves: list[LayerMoves] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of changes to the map; the bound on replay counts these."""
        moved = sum(len(m.rows) for m in self.moves)
        return sum(len(e.blocks) for e in self.extents) + len(self.zeroes) + moved


def encode_header(header: CommitHeader, magic: bytes = MAGIC) -> tuple[bytes, int]:
    """Return the header's 128 bytes and its checksum, which the next header repeats."""
    packed = bytearray(HEADER_BYTES)
    _HEADER.pack_into(
        packed, 0, magic, VERSION, 0, header.table_bytes, header.pool_uuid.bytes,
        header.number, header.segment, header.offset, header.total_bytes, header.epoch,
        header.durable_through, header.previous, header.table_digest, 0,
    )  # fmt: skip
    checksum = digest_of(memoryview(packed)[:-8])
    struct.pack_into("<Q", packed, HEADER_BYTES - 8, checksum)
    return bytes(packed), checksum


def decode_header(data: Buffer, magic: bytes = MAGIC) -> CommitHeader | None:
    """Read a header; None when the bytes are not one.

    Raises:
        FormatVersionError: a newer Cenote wrote the header.
    """
    view = memoryview(data)
    if len(view) < HEADER_BYTES or view[:8] != magic:
        return None
    (_, version, _flags, table_bytes, pool, number, segment, offset, total_bytes, epoch,
     durable_through, previous, table_digest, checksum) = _HEADER.unpack_from(view)  # fmt: skip
    if digest_of(view[: HEADER_BYTES - 8]) != checksum:
        return None
    if version > VERSION:
        raise FormatVersionError(f"commit made by a newer cenote: version={version}")
    if total_bytes > COMMIT_BYTES_MAX or HEADER_BYTES + table_bytes > total_bytes:
        return None
    return CommitHeader(
        UUID(bytes=pool), number, segment, offset, total_bytes, table_bytes, epoch,
        durable_through, previous, table_digest, checksum,
    )  # fmt: skip


def _record(kind: int, layer: int, body: bytes) -> bytes:
    padding = -len(body) % 8
    return _RECORD.pack(kind, 0, len(body), layer) + body + bytes(padding)


def encode_table(records: Records) -> bytes:
    """Return the record table as bytes; the locations in `records` must be final."""
    parts = []
    for e in records.extents:
        rows = np.empty((len(e.blocks), 3), dtype="<u8")
        rows[:, 0] = e.blocks | e.hash_tops << np.uint64(HASH_TOP_SHIFT)
        rows[:, 1] = e.a
        rows[:, 2] = e.b
        parts.append(_record(EXTENTS, e.layer, rows.tobytes()))
    parts.extend(
        _record(ZEROES, layer, struct.pack("<QQ", first, count))
        for layer, first, count in records.zeroes
    )
    parts.extend(_record(OPERATION, 0, operation) for operation in records.operations)
    for segment, copies in records.announced:
        parts.append(_record(ANNOUNCE, 0, _ANNOUNCE.pack(segment) + _pack_copies(copies)))
    for placed in records.placed:
        body = _PLACED.pack(placed.segment, placed.used_bytes) + _pack_copies(placed.copies)
        parts.append(_record(PLACED, 0, body))
    parts.extend(_record(MOVES, moves.layer, _encode_moves(moves.rows)) for moves in records.moves)
    return b"".join(parts)


def _pack_copies(copies: tuple[Copy, ...]) -> bytes:
    return b"".join(_COPY.pack(copy.member, 1, copy.slot) for copy in copies)


def _unpack_copies(body: memoryview) -> tuple[Copy, ...]:
    return tuple(Copy(member, slot) for member, _, slot in _COPY.iter_unpack(body))


def decode_table(table: Buffer) -> Records:
    """Read a record table whose digest is right.

    Raises:
        DamagedError: the records do not add up, or a type that must not be skipped is unknown
            (R19).
    """
    records = Records()
    for kind, flags, layer, body in _walk(memoryview(table)):
        if kind == EXTENTS:
            records.extents.append(_decode_extents(layer, body))
        elif kind == ZEROES:
            _expect(len(body) % 16 == 0, "zero ranges")
            for first, count in struct.iter_unpack("<QQ", body):
                _expect(count > 0 and first + count <= BLOCK_NUMBER_MASK + 1, "zeroed blocks")
                records.zeroes.append((layer, first, count))
        elif kind == OPERATION:
            records.operations.append(bytes(body))
        elif kind == ANNOUNCE:
            _expect(len(body) >= 16 and len(body) % 8 == 0, "announcement")
            records.announced.append((_ANNOUNCE.unpack_from(body)[0], _unpack_copies(body[8:])))
        elif kind == MOVES:
            records.moves.append(_decode_moves(layer, body))
        elif kind == PLACED:
            _expect(len(body) >= 24 and len(body) % 8 == 0, "placement")
            copies = _unpack_copies(body[16:])
            segment, used_bytes = _PLACED.unpack_from(body)
            records.placed.append(Placed(segment, used_bytes, copies))
        elif not flags & SKIPPABLE:
            raise DamagedError(f"commit holds a record unknown here: type={kind}")
    return records


def _walk(table: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    at = 0
    while at < len(table):
        _expect(at + _RECORD.size <= len(table), "record header")
        kind, flags, body_bytes, layer = _RECORD.unpack_from(table, at)
        at += _RECORD.size
        _expect(at + body_bytes <= len(table), "record body")
        yield kind, flags, layer, table[at : at + body_bytes]
        at += body_bytes + -body_bytes % 8


def _decode_extents(layer: int, body: memoryview) -> LayerExtents:
    _expect(len(body) % 24 == 0, "extents")
    rows = np.frombuffer(body, dtype="<u8").reshape(-1, 3)
    _expect(bool(((rows[:, 1] & np.uint64(KIND_MASK)) >= RAW).all()), "places of blocks")
    return LayerExtents(
        layer,
        blocks=rows[:, 0] & np.uint64(BLOCK_NUMBER_MASK),
        a=rows[:, 1].copy(),
        b=rows[:, 2].copy(),
        hash_tops=rows[:, 0] >> np.uint64(HASH_TOP_SHIFT),
    )


def _encode_moves(rows: Words) -> bytes:
    planes = rows.astype("<u8", copy=False).view(np.uint8).T.tobytes()
    return len(rows).to_bytes(8, "little") + codec.pack(planes)[1]


def _decode_moves(layer: int, body: memoryview) -> LayerMoves:
    count = int.from_bytes(body[:8], "little")
    plain_bytes = count * 40
    _expect(len(body) >= 8 and 0 < plain_bytes <= COMMIT_BYTES_MAX, "number of moves")
    planes: Buffer = body[8:]
    if len(body) - 8 < plain_bytes:
        planes = codec.expand(LZ4, planes, plain_bytes)
    _expect(memoryview(planes).nbytes == plain_bytes, "moves")
    bytes_by_row = np.frombuffer(memoryview(planes), dtype=np.uint8).reshape(40, count).T
    rows = np.ascontiguousarray(bytes_by_row).view("<u8")
    counts = rows[:, 0] >> np.uint64(MOVE_COUNT_SHIFT)
    last = (rows[:, 0] & np.uint64(PAGE_BLOCKS - 1)) + counts
    # A row stays within one map page: the cleaner cuts extents that do not.
    _expect(bool((counts > 0).all() and (last <= PAGE_BLOCKS).all()), "moved blocks")
    for word in (1, 3):
        kinds = rows[:, word] & np.uint64(KIND_MASK)
        _expect(bool((kinds >= RAW).all()), "places of moved blocks")
    return LayerMoves(layer, rows)


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise DamagedError(f"commit table does not add up: {what}")


def payload_is_good(commit: Buffer, header: CommitHeader, records: Records) -> bool:
    """Whether every extent in this commit's payload matches its full 64-bit hash.

    `commit` is the whole commit, from its header on.
    """
    view = memoryview(commit)
    for e in records.extents:
        rows = zip(e.a.tolist(), e.b.tolist(), e.hash_tops.tolist(), strict=True)
        for a, b, top in rows:
            if a & KIND_MASK < RAW or a >> SEGMENT_SHIFT != header.segment:
                continue
            start = (a >> 3 & OFFSET_MASK) * OFFSET_GRAIN_BYTES - header.offset
            stored = (b & 0xFFFF) + 1
            if start < HEADER_BYTES or start + stored > header.total_bytes:
                return False
            digest = top << HASH_TOP_SHIFT | b >> CHECK_SHIFT
            if digest_of(view[start : start + stored]) != digest:
                return False
    return True


def expand_extents(e: LayerExtents) -> tuple[Words, Words, Words]:
    """Return one item per block instead of one per extent: (block numbers, words A, words B)."""
    counts = (e.b >> np.uint64(20) & np.uint64(0xF)).astype(np.int64) + 1
    if not len(counts) or counts.max() == 1:
        return e.blocks, e.a, e.b
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    within_words = within.astype(np.uint64)
    return (
        np.repeat(e.blocks, counts) + within_words,
        np.repeat(e.a, counts),
        np.repeat(e.b, counts) + within_words * np.uint64(INDEX_STEP),
    )
