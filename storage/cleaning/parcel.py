"""What is alive of a window, made ready to be stored elsewhere: pure work for a worker thread.

An extent that is alive as a whole is carried over as it is stored. Of a compressed one that is
partly dead the blocks that are alive are unpacked and stored anew, or the dead ones would be
carried along for ever.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storage.cleaning.windows import Window
from storage.format import codec
from storage.format.codec import digest_of
from storage.format.entry import (
    BLOCK_BYTES,
    BLOCK_SHIFT,
    CHECK_MASK,
    EXTENT_BLOCKS_MAX,
    INDEX_STEP,
    LZ4,
    RAW,
    Location,
    unpack,
)
from storage.format.pages import PAGE_SHIFT
from storage.log.encode import EXTENT_BLOCKS
from storage.map.liveness import Alive


@dataclass(frozen=True, slots=True)
class Parcel:
    """One extent on its way. `olds` says where its blocks were: (blocks, word A, word B)."""

    layer: int
    block: int
    kind: int
    stored: bytes | memoryview
    blocks: int
    olds: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Bad:
    """Stored bytes that have not the hash their pointer has; another copy may."""

    layer: int
    rows: tuple[tuple[int, int, int], ...]
    """(block, word A, word B) of each block that is alive."""


def make_parcels(window: Window, alive: Sequence[Alive]) -> tuple[list[Parcel], list[Bad]]:
    """Cut the blocks that are alive out of a window, each verified."""
    parcels: list[Parcel] = []
    bad: list[Bad] = []
    for layer, rows in _extents(alive):
        at = unpack(rows[0][1], rows[0][2])
        start = at.offset - window.start
        stored = window.data[max(start, 0) : start + at.stored_bytes]
        if len(stored) != at.stored_bytes or digest_of(stored) & CHECK_MASK != at.check:
            bad.append(Bad(layer, rows))
        else:
            parcels += parcels_of(layer, rows, at, stored)
    return parcels, bad


def parcels_of(
    layer: int,
    rows: tuple[tuple[int, int, int], ...],
    at: Location,
    stored: bytes | memoryview,
) -> list[Parcel]:
    """One extent whose bytes are good, whole or in parts.

    Raises:
        DamagedError: it does not unpack, though its hash is right.
    """
    block, a, b = rows[0]
    in_one_page = block >> PAGE_SHIFT == rows[-1][0] >> PAGE_SHIFT
    if len(rows) == at.blocks and in_one_page:
        return [Parcel(layer, block, at.kind, stored, at.blocks, ((at.blocks, a, b),))]
    plain = memoryview(codec.expand(at.kind, stored, EXTENT_BLOCKS_MAX * BLOCK_BYTES))
    parcels = []
    for run in _runs(rows):
        first = run[0][2] >> 16 & 0xF
        data = plain[first << BLOCK_SHIFT : first + len(run) << BLOCK_SHIFT]
        olds = tuple((1, a, b) for _, a, b in run)
        packed = codec.compress(data, len(data))
        if packed is not None:
            parcels.append(Parcel(layer, run[0][0], LZ4, packed, len(run), olds))
            continue
        for i, (block, _, _) in enumerate(run):
            piece = data[i << BLOCK_SHIFT : i + 1 << BLOCK_SHIFT]
            parcels.append(Parcel(layer, block, RAW, piece, 1, (olds[i],)))
    return parcels


def _extents(alive: Sequence[Alive]) -> Iterator[tuple[int, tuple[tuple[int, int, int], ...]]]:
    """The blocks that are alive, those of one extent together, in order.

    The blocks of an extent are neighbours, but the halves of one that crosses the end of a map
    page come in two items.
    """
    for each in alive:
        rows = list(zip(each.blocks.tolist(), each.a.tolist(), each.b.tolist(), strict=True))
        start = 0
        for i in range(1, len(rows) + 1):
            if i == len(rows) or rows[i][1] != rows[start][1]:
                yield each.layer, tuple(rows[start:i])
                start = i


def _runs(rows: tuple[tuple[int, int, int], ...]) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Neighbours in the extent, at most as many together as are usually compressed together."""
    start = 0
    for i in range(1, len(rows) + 1):
        follows = i < len(rows) and rows[i][2] == rows[i - 1][2] + INDEX_STEP
        if not follows or i - start == EXTENT_BLOCKS:
            yield rows[start:i]
            start = i
