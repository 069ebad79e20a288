r"""The stored form of the block map: pages and directory chunks.

A page maps 1,024 blocks. For each page a layer stores at most one base and one cumulative
delta. The delta counts from the nearest base, the layer's own or an ancestor's. Both have this
form, format version 1, little-endian; `n` is the count:

    offset  size  field    meaning
         0     2  version  u16, 1
         2     2  count    u16, n, 0 to 1024
         4     4  zero     zeros

then n low bytes and n high bytes of the u16 slots, then word A and word B of the n entries,
each word as eight planes of n bytes, lowest byte first: the planes of equal bytes are
what lz4 removes. A slot is the block's index in the page; bit 15 marks an inherited entry,
a hint that belongs to an ancestor (R6). In a delta, an entry of kind 0 says that
the base's entry is gone.

A directory chunk lists the pages of one layer for 1,024 pages: rows of 32 bytes, base A, base B,
delta A, delta B; a kind of 0 means there is none.
"""

import struct

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from storage.errors import DamagedError
from storage.format.entry import KIND_MASK, Words

PAGE_BLOCKS = 1024
PAGE_SHIFT = 10
VERSION = 1
INHERITED = 1 << 15
CHUNK_PAGES = 1024
CHUNK_SHIFT = 10
CHUNK_BYTES = CHUNK_PAGES * 32
PAGE_BLOB_BYTES_MAX = 8 + PAGE_BLOCKS * 18

Flags = NDArray[np.bool_]
_HEAD = struct.Struct("<HHI")


def encode_page(slots: NDArray[np.int64], entries: Words, own: Flags) -> bytes:
    """Return the page blob of the entries of `slots`, ascending block indexes in the page.

    Args:
        slots: shape (n,).
        entries: shape (n, 2), words A and B.
        own: shape (n,), False for hints.
    """
    count = len(slots)
    tags = slots.astype("<u2") | np.where(own, 0, INHERITED).astype("<u2")
    tag_planes = np.ascontiguousarray(tags).view(np.uint8).reshape(count, 2).T
    words = np.ascontiguousarray(entries, dtype="<u8").view(np.uint8).reshape(count, 16).T
    return _HEAD.pack(VERSION, count, 0) + tag_planes.tobytes() + words.tobytes()


def decode_page(blob: Buffer) -> tuple[NDArray[np.int64], Words, Flags]:
    """The inverse of `encode_page`: slots (n,), entries (n, 2), own (n,).

    Raises:
        DamagedError: the blob is no page, or its slots are out of order.
    """
    view = memoryview(blob)
    if len(view) < _HEAD.size:
        raise DamagedError("map page is cut short")
    version, count, _ = _HEAD.unpack_from(view)
    if version != VERSION or count > PAGE_BLOCKS or len(view) != _HEAD.size + count * 18:
        raise DamagedError(f"map page does not add up: {version=} {count=} bytes={len(view)}")
    planes = np.frombuffer(view, dtype=np.uint8, offset=_HEAD.size)
    tags = np.ascontiguousarray(planes[: 2 * count].reshape(2, count).T).view("<u2").ravel()
    words = np.ascontiguousarray(planes[2 * count :].reshape(16, count).T).view("<u8")
    slots = (tags & (INHERITED - 1)).astype(np.int64)
    if count and (slots[-1] >= PAGE_BLOCKS or bool((np.diff(slots) <= 0).any())):
        raise DamagedError("map page has slots out of order")
    return slots, words.reshape(count, 2), (tags & INHERITED) == 0


def decode_chunk(blob: Buffer) -> Words:
    """Return a directory chunk as a writable u64 array of shape (1024, 4).

    Raises:
        DamagedError: the size is wrong.
    """
    if len(memoryview(blob)) != CHUNK_BYTES:
        raise DamagedError("map directory chunk has the wrong size")
    return np.frombuffer(memoryview(blob), dtype="<u8").reshape(CHUNK_PAGES, 4).copy()


def is_set(word_a: int) -> bool:
    """Whether a directory word points to a blob."""
    return word_a & KIND_MASK != 0
