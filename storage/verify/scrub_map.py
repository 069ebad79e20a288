"""Scrubs the metadata that a checkpoint names: root, tables, directories and pages, on every copy.

Metadata is read from the places that the map names, in the order of these places. Tables and
directories are in memory as well: a checkpoint writes them anew when no copy of them is good.
Extents in gaps, the parts of segments that do not say what they hold, are read here as pages name
them.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray

from blockdev.errors import DeviceError
from storage.checkpoint.checkpointer import Checkpointer
from storage.format import checkpoint_root
from storage.format.entry import (
    CHECK_MASK,
    KIND_MASK,
    OFFSET_GRAIN_BYTES,
    RAW,
    SEGMENT_SHIFT,
    Words,
    pack_a,
    unpack,
)
from storage.format.pages import CHUNK_SHIFT, PAGE_BLOCKS, PAGE_SHIFT
from storage.format.superblock import RootPointer
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.members.roster import Roster
from storage.members.segment_io import SegmentIO
from storage.members.segments import SegmentTable
from storage.verify.affected import Affected
from storage.verify.examiner import PIECE_BYTES, Describe, Examiner, Subject
from storage.verify.manifest import Piece
from storage.verify.scrub_pass import Finding, Gap, Outcome, ScrubPass

TABLES_TRIES_MAX = 4
"""Tries to read all tables of one checkpoint, as each checkpoint writes them anew. If checkpoints
come faster, the tables that were read were good a moment ago, which is enough."""

NEIGHBOURS_BYTES = 64 << 10
"""Pieces of metadata with at most so many bytes between them are read at once."""


@dataclass(frozen=True, slots=True)
class Named:
    """A place in a segment, by the words of an entry, and a function that describes it."""

    a: int
    b: int
    describe: Describe = field(compare=False)


class MapScrub:
    """Scrubs metadata, and extents in gaps, for one pass."""

    def __init__(
        self, table: SegmentTable, segment_io: SegmentIO, roster: Roster, blockmap: BlockMap,
        checkpointer: Checkpointer, checkpoint: Callable[[], Awaitable[None]],
        examiner: Examiner, affected: Affected,
    ):  # fmt: skip
        self._table = table
        self._segment_io = segment_io
        self._roster = roster
        self._map = blockmap
        self._checkpointer = checkpointer
        self._checkpoint = checkpoint
        self._examiner = examiner
        self._affected = affected
        self._alive_gaps: set[Gap] = set()

    @property
    def _scrub(self) -> ScrubPass:
        return self._examiner.scrub

    # -- root and tables

    async def tables(self) -> None:
        """Read the root of the checkpoint, and the tables that it names."""
        for _ in range(TABLES_TRIES_MAX):
            pointer = self._roster.superblock.root
            if not pointer.checkpoint:
                return
            still = partial(self._table_of, pointer)
            outcomes = await self._read([Named(pointer.a, pointer.b, partial(still, "root"))])
            if Outcome.LOST not in outcomes:
                made = await self._root(pointer.a, pointer.b)
                named = [
                    Named(a, b, partial(still, what))
                    for what in ("catalogue", "segments", "directories", "usage")
                    for a, b in (() if made is None else getattr(made, what))
                ]
                outcomes = await self._read(named)
            if Outcome.LOST in outcomes:
                await self._checkpoint()  # all tables are in memory
            elif self._roster.superblock.root == pointer:
                return

    async def _table_of(self, pointer: RootPointer, what: str) -> Subject | None:
        return Subject(what) if self._roster.superblock.root == pointer else None

    async def _root(self, a: int, b: int) -> checkpoint_root.Root | None:
        try:
            return checkpoint_root.unpack(
                await self._segment_io.read_located(a, b, checkpoint_root.ROOT_BYTES_MAX)
            )
        except DeviceError:
            return None  # another checkpoint was written, and this root is freed

    # -- directories and pages

    async def chunk(self, layer: Layer, number: int) -> None:
        """Read one chunk of a layer's directory, and all pages in it."""
        where = layer.directory.located.get(number)
        if where is None:
            return
        directory = Named(*where, partial(self._directory, layer, number, where))
        if Outcome.LOST in await self._read([directory]):
            self._checkpointer.rewrite.add((layer.number, number))
            await self._checkpoint()
        rows = layer.directory.chunk(number)
        used = (rows != 0).any(axis=1).nonzero()[0].tolist()
        pages = [(number << CHUNK_SHIFT) + slot for slot in used]
        named = [
            Named(row[at], row[at + 1], partial(self._page, layer, page, (row[at], row[at + 1])))
            for page, row in zip(pages, rows[used].tolist(), strict=True)
            for at in (0, 2)
            if row[at]
        ]
        await self._read(named)
        if self._scrub.gaps:
            for page in pages:
                await self._fill_gaps(layer, page)

    async def _directory(self, layer: Layer, number: int, where: tuple[int, int]) -> Subject | None:
        here = self._map.layers.get(layer.number) is layer
        here = here and layer.directory.located.get(number) == where
        return Subject("directory") if here else None

    async def _page(self, layer: Layer, number: int, where: tuple[int, int]) -> Subject | None:
        row = layer.directory.get(number)
        if self._map.layers.get(layer.number) is not layer or row is None:
            return None
        if where not in ((row[0], row[1]), (row[2], row[3])):
            return None
        return Subject("map page", self._affected.of_page(layer.number, number))

    async def _read(self, named: list[Named]) -> set[Outcome]:
        """Read places in the order in which they lie; returns the outcomes of the bad ones."""
        outcomes: set[Outcome] = set()
        for run in _neighbours(named):
            piece = Piece(mask=CHECK_MASK)
            for one in run:
                at = unpack(one.a, one.b)
                piece.add(at.offset, at.stored_bytes, at.check)
            segment = self._table.get(run[0].a >> SEGMENT_SHIFT)
            if segment is None or not self._examiner.is_live(segment):
                continue
            read_bytes = sum(piece.lengths) * len(segment.places)
            self._scrub.done_bytes += read_bytes
            self._scrub.map_bytes += read_bytes
            for item in await self._examiner.examine(segment, piece):
                outcome = await self._examiner.settle(segment, piece, item, run[item].describe)
                outcomes |= {outcome} if outcome is not None else set()
            await trio.lowlevel.checkpoint()
        return outcomes

    # -- gaps

    async def _fill_gaps(self, layer: Layer, number: int) -> None:
        """Read the extents that a page names in gaps."""
        row = layer.directory.get(number)
        if row is None or self._map.layers.get(layer.number) is not layer:
            return
        try:
            merged = await self._map.own_of(row, number)
        except DeviceError:
            return  # the page is lost, or was freed meanwhile
        slots = merged.own.nonzero()[0]
        entries = merged.entries[slots]
        stored = (entries[:, 0] & np.uint64(KIND_MASK)) >= np.uint64(RAW)
        slots, entries = slots[stored], entries[stored]
        for gap in self._scrub.gaps:
            here = _within(gap, entries)
            if here.any():
                blocks = slots[here].astype(np.uint64) + np.uint64(number << PAGE_SHIFT)
                await self._fill_gap(gap, layer, blocks, entries[here])

    async def _fill_gap(self, gap: Gap, layer: Layer, blocks: Words, entries: Words) -> None:
        extents = np.unique(entries[:, 0])
        named = []
        for a in extents.tolist():
            rows = (entries[:, 0] == np.uint64(a)).nonzero()[0]
            describe = partial(self._block, layer, blocks[rows], entries[rows])
            named.append(Named(a, int(entries[rows[0], 1]), describe))
        if gap not in self._alive_gaps and await self._block(layer, blocks, entries):
            self._alive_gaps.add(gap)
            self._note(gap)
        await self._read(named)

    async def _block(self, layer: Layer, blocks: Words, entries: Words) -> Subject | None:
        """Describe blocks of one page; None if the map no longer names any of these entries."""
        if self._map.layers.get(layer.number) is not layer:
            return None
        try:
            page = await self._map.page(layer, int(blocks[0]) >> PAGE_SHIFT)
        except DeviceError:
            return None
        now = page.entries[(blocks & np.uint64(PAGE_BLOCKS - 1)).astype(np.intp)]
        same = (now == entries).all(axis=1)
        if not same.any():
            return None
        a, b = entries[same, 0], entries[same, 1]
        holds = await self._affected.of_blocks(layer.number, blocks[same], a, b)
        return Subject("data", holds)

    def _note(self, gap: Gap) -> None:
        segment = self._table.get(gap.segment)
        if segment is not None and self._examiner.is_live(segment):
            names = [member.name for member, _ in self._examiner.copies(segment)]
            problem = "it does not say what it holds, and cannot be cleaned"
            self._examiner.note(
                Finding(
                    "record table", names, gap.segment, gap.start, gap.end - gap.start, problem,
                    Outcome.LOST,
                )
            )  # fmt: skip


def _within(gap: Gap, entries: Words) -> NDArray[np.bool_]:
    """Which entries name places in a gap."""
    low = pack_a(0, gap.segment, gap.start)
    high = low + ((gap.end - gap.start) // OFFSET_GRAIN_BYTES << 3)
    named: NDArray[np.bool_] = entries[:, 0] >= np.uint64(low)
    named &= entries[:, 0] < np.uint64(high)
    return named


def _neighbours(named: list[Named]) -> list[list[Named]]:
    """Sort places by segment and offset, and group those near to each other."""
    runs: list[list[Named]] = []
    end = start = segment = -1
    for one in sorted(named, key=lambda one: one.a >> 3):
        at = unpack(one.a, one.b)
        far = at.offset > end + NEIGHBOURS_BYTES
        far |= at.offset + at.stored_bytes > start + PIECE_BYTES
        if at.segment != segment or far:
            runs.append([])
            segment, start = at.segment, at.offset
        runs[-1].append(one)
        end = at.offset + at.stored_bytes
    return runs
