"""Map entries: where one 4 KiB block is stored. 16 bytes, two little-endian u64.

    word A   bits  0..2   kind: 0 absent (look in the parent), 1 zero, 3 raw, 4 lz4
                          2 is never on disk; 5 zstd, 6 and 7 are reserved
             bits  3..24  offset in the segment / 64 bytes
             bits 25..63  segment number, never reused
    word B   bits  0..15  stored bytes - 1, exact
             bits 16..19  index of this block in its extent
             bits 20..23  blocks in the extent - 1
             bits 24..63  low 40 bits of xxh3_64 of the stored bytes

The same two words locate metadata (pages, directories, tables), as extents of one "block".
The checksum lies with the pointer, so a lost, misdirected or stale write is found,
not just a flipped bit. A location never changes its meaning (R13): segment numbers
are not reused and segments are append-only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 4096
BLOCK_SHIFT = 12

ABSENT = 0
ZERO = 1
RAW = 3
LZ4 = 4
KIND_MASK = 7
KNOWN_KINDS = frozenset((ABSENT, ZERO, RAW, LZ4))

EXTENT_BLOCKS_MAX = 16
"""A compressed extent holds 1 to 16 blocks: 4 bits of the entry."""

STORED_BYTES_MAX = 65536
OFFSET_GRAIN_BYTES = 64
SEGMENT_BYTES_MAX = OFFSET_GRAIN_BYTES << 22
SEGMENT_NUMBER_MAX = (1 << 39) - 1

CHECK_SHIFT = 24
CHECK_MASK = (1 << 40) - 1
SEGMENT_SHIFT = 25
OFFSET_MASK = (1 << 22) - 1
INDEX_STEP = 1 << 16
"""The difference of word B between one block of an extent and the next."""

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Location:
    """One entry, decoded; `offset` in bytes. `check`: low 40 bits of the stored bytes' hash."""

    kind: int
    segment: int
    offset: int
    stored_bytes: int
    index: int
    blocks: int
    check: int


def pack_a(kind: int, segment: int, offset: int) -> int:
    """Return word A of an entry; `offset` is bytes from the start of the segment."""
    assert offset % OFFSET_GRAIN_BYTES == 0
    assert 0 <= offset < SEGMENT_BYTES_MAX
    return kind | (offset // OFFSET_GRAIN_BYTES) << 3 | segment << SEGMENT_SHIFT


def pack_b(stored_bytes: int, blocks: int, digest: int, index: int = 0) -> int:
    """Return word B of an entry; `digest` is the full xxh3_64 of the stored bytes."""
    return (
        (stored_bytes - 1) | index << 16 | (blocks - 1) << 20 | (digest & CHECK_MASK) << CHECK_SHIFT
    )


def unpack(a: int, b: int) -> Location:
    """Decode one entry. Any two words decode; the result is valid if `kind` is a known one."""
    return Location(
        kind=a & KIND_MASK,
        segment=a >> SEGMENT_SHIFT,
        offset=(a >> 3 & OFFSET_MASK) * OFFSET_GRAIN_BYTES,
        stored_bytes=(b & 0xFFFF) + 1,
        index=b >> 16 & 0xF,
        blocks=(b >> 20 & 0xF) + 1,
        check=b >> CHECK_SHIFT,
    )


def segments_of(a: Words) -> Words:
    """Return the segment number of each entry, shape as `a`."""
    return a >> np.uint64(SEGMENT_SHIFT)


def shares_of(a: Words, b: Words) -> NDArray[np.int64]:
    """Return the stored bytes that each block's entry accounts for, shape as `a`.

    The shares of the blocks of one extent add up to its stored bytes exactly, so live
    counts are exact in whatever order the blocks are overwritten: block i of n accounts for
    floor((i+1)*stored/n) - floor(i*stored/n). Absent and zero entries account for 0.
    """
    stored = (b & np.uint64(0xFFFF)).astype(np.int64) + 1
    index = (b >> np.uint64(16) & np.uint64(0xF)).astype(np.int64)
    blocks = (b >> np.uint64(20) & np.uint64(0xF)).astype(np.int64) + 1
    share = (index + 1) * stored // blocks - index * stored // blocks
    return np.where((a & np.uint64(KIND_MASK)) >= np.uint64(RAW), share, 0)


def live_by_segment(a: Words, b: Words) -> dict[int, int]:
    """Return the sum of `shares_of` by segment number, without segments that hold none."""
    stored = (a & np.uint64(KIND_MASK)) >= np.uint64(RAW)
    if not stored.any():
        return {}
    segments, shares = segments_of(a[stored]), shares_of(a[stored], b[stored])
    if segments.min() == segments.max():  # the usual case, and much cheaper
        return {int(segments[0]): int(shares.sum())}
    numbers, inverse = np.unique(segments, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=shares)
    return {int(n): int(s) for n, s in zip(numbers, sums, strict=True)}
