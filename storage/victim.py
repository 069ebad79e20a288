"""What a segment holds, and what of it is still alive: found from the segment itself.

Every batch of stored blocks, in the log or moved, starts with a header and a record table that
says which blocks of which layers follow. A block is alive when the map of its layer still names
just this place. The record tables name layers as of then; merges have moved blocks since, so the
layer that owns a page now is looked up by the merges that were done.
"""

import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import trio
from numpy.typing import NDArray

from blockdev.errors import DeviceError
from storage import commit
from storage.blockmap import BlockMap, by_page
from storage.catalogue import Catalogue
from storage.codec import digest_of
from storage.commit import HEADER_BYTES, CommitHeader, LayerExtents, expand_extents
from storage.entry import Words
from storage.errors import FormatVersionError
from storage.layer import Layer
from storage.pageblob import PAGE_BLOCKS
from storage.segments import Segment
from storage.store import Store

log = logging.getLogger("cenote.storage")

WINDOW_BYTES = 8 << 20
"""Read at once and held while its blocks are moved; holds at least the largest usual batch."""

PAGES_PER_TURN = 8
"""Then others run: a page that is in memory takes about 20 us."""


@dataclass(frozen=True, slots=True)
class Window:
    """Whole batches of a segment: their bytes from `start` on, and what they say they hold."""

    start: int
    end: int
    data: memoryview
    extents: list[LayerExtents]


@dataclass(frozen=True, slots=True)
class Alive:
    """Blocks of one page of one layer that still lie where they were written: arrays of u64."""

    layer: int
    blocks: Words
    a: Words
    b: Words


async def windows(store: Store, segment: Segment, pool_uuid: UUID) -> AsyncGenerator[Window, None]:
    """Everything a segment holds, window by window; ends early where no copy is readable."""
    at = 0
    while at + HEADER_BYTES <= segment.used_bytes:
        window = await _read(store, segment, at, pool_uuid)
        if window is None:
            return
        yield window
        at = window.end


async def _read(store: Store, segment: Segment, at: int, pool_uuid: UUID) -> Window | None:
    segment.readers += 1
    try:
        for member, base in segment.places:
            length = min(WINDOW_BYTES, segment.used_bytes - at)
            try:
                data = memoryview(await member.read(base + at, length))
                first = _header(data, segment, at, pool_uuid)
                if first is not None and first.total_bytes > length:
                    data = memoryview(await member.read(base + at, first.total_bytes))
                window = _parse(data, segment, at, pool_uuid)
            except FormatVersionError:
                raise
            except DeviceError as error:
                log.warning("cannot look into segment %d: %s", segment.number, error)
                continue
            if window is not None:
                return window
    finally:
        segment.readers -= 1
    return None


def _header(data: memoryview, segment: Segment, at: int, pool_uuid: UUID) -> CommitHeader | None:
    header = commit.decode_header(data) or commit.decode_header(data, commit.MOVED_MAGIC)
    if header is None or header.segment != segment.number or header.offset != at:
        return None
    return header if header.pool_uuid == pool_uuid else None


def _parse(data: memoryview, segment: Segment, start: int, pool_uuid: UUID) -> Window | None:
    at = 0
    extents: list[LayerExtents] = []
    while at + HEADER_BYTES <= len(data):
        header = _header(data[at:], segment, start + at, pool_uuid)
        if header is None or at + header.total_bytes > len(data):
            break
        table = data[at + HEADER_BYTES : at + HEADER_BYTES + header.table_bytes]
        if digest_of(table) != header.table_digest:
            break
        extents += commit.decode_table(table).extents
        at += header.total_bytes
    return Window(start, start + at, data[:at], extents) if at else None


class Living:
    """Tells which stored blocks are alive. Nothing is locked: what it says may be outdated as soon
    as it is said, which is why moves are conditional (R11)."""

    def __init__(self, blockmap: BlockMap, durable: Catalogue) -> None:
        self._map = blockmap
        self._durable = durable

    async def of(self, extents: list[LayerExtents]) -> list[Alive]:
        """What is alive of these extents, in the order of layers and blocks."""
        found: list[Alive] = []
        merging = self._durable.merging()
        turns = 0
        for number, blocks, a, b in _joined(extents):
            for page_number, group in by_page(blocks):
                turns += 1
                if turns % PAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
                owner = self._owner(number, page_number, merging)
                if owner is None:
                    continue
                try:
                    page = await self._map.page(owner, page_number)
                except DeviceError as error:
                    log.warning("what a damaged map page names counts as dead here: %s", error)
                    continue
                words = page.entries[(blocks[group] & np.uint64(PAGE_BLOCKS - 1)).astype(np.intp)]
                same = group[(words[:, 0] == a[group]) & (words[:, 1] == b[group])]
                if len(same):
                    found.append(Alive(owner.number, blocks[same], a[same], b[same]))
        return found

    def _owner(self, number: int, page: int, merging: dict[int, int]) -> Layer | None:
        """The layer that owns what a layer stored on a page: itself, or the one it went into."""
        while True:
            layer = self._map.layers.get(number)
            record = self._durable.layers.get(number)
            if layer is not None and (record is None or record.dying):
                return None
            if layer is not None and layer.owns(page):
                return layer
            below = merging.get(number) if layer is not None else self._durable.merged_into(number)
            if below is None:
                return None
            number = below


def _joined(extents: list[LayerExtents]) -> Iterator[tuple[int, Words, Words, Words]]:
    """All blocks by layer, ascending; later ones of the same block behind earlier ones."""
    by_layer: dict[int, list[tuple[Words, Words, Words]]] = {}
    for each in extents:
        by_layer.setdefault(each.layer, []).append(expand_extents(each))
    for number in sorted(by_layer):
        columns = [np.concatenate(parts) for parts in zip(*by_layer[number], strict=True)]
        order: NDArray[np.intp] = np.argsort(columns[0], kind="stable")
        blocks, a, b = (column[order] for column in columns)
        yield number, blocks, a, b
