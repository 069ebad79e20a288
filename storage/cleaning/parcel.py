"""Makes the live blocks of a window ready to be stored elsewhere: pure work for a worker thread.

An extent whose blocks are all alive is moved as it is stored. The live blocks of a compressed
extent that is partly dead are unpacked and compressed anew; else the dead ones would be moved
along for ever.
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
    """One extent to store. `olds` has the old places of its blocks: (blocks, word A, word B)."""

    layer: int
    block: int
    kind: int
    stored: bytes | memoryview
    blocks: int
    olds: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Bad:
    """An extent whose bytes do not match the hash in its entry; another copy may be good."""

    layer: int
    rows: tuple[tuple[int, int, int], ...]
    """(block, word A, word B) of each live block."""


def make_parcels(window: Window, alive: Sequence[Alive]) -> tuple[list[Parcel], list[Bad]]:
    """Cut the live blocks out of a window and verify them; returns parcels, and the bad extents."""
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
    """Make parcels of the live blocks (`rows`) of an extent with the right hash: one parcel if the
    whole extent is alive, else one for each run of live blocks, or for each block of a run that
    does not compress.

    Raises:
        DamagedError: the extent does not unpack, though its hash is right.
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
    """Yield (layer, live blocks) of each extent, in order of the blocks.

    The blocks of an extent are neighbours, but an extent that crosses the end of a map page is
    yielded as two halves.
    """
    for each in alive:
        rows = list(zip(each.blocks.tolist(), each.a.tolist(), each.b.tolist(), strict=True))
        start = 0
        for i in range(1, len(rows) + 1):
            if i == len(rows) or rows[i][1] != rows[start][1]:
                yield each.layer, tuple(rows[start:i])
                start = i


def _runs(rows: tuple[tuple[int, int, int], ...]) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Split the live blocks of an extent into runs of neighbours, as long as the log's extents."""
    start = 0
    for i in range(1, len(rows) + 1):
        follows = i < len(rows) and rows[i][2] == rows[i - 1][2] + INDEX_STEP
        if not follows or i - start == EXTENT_BLOCKS:
            yield rows[start:i]
            start = i
