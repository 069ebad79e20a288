"""Relocates live pages out of metadata segments that are mostly dead, so that these are freed.

Pages die at different ages, so a segment with one old page in it would never be freed. A
checkpoint therefore writes the pages and directories of the emptiest segments anew, after those
that changed. The new copies are part of the checkpoint like any other page: until its superblocks
are written none of them names the copies; the segments that they left are freed by the same
checkpoint and reused after the next (R8, R10). A page whose base has to be written again is written
whole, with the entries of its delta, so that the next delta begins empty. Catalogue, tables and
root need no relocation, as every checkpoint writes them.

The bound: after a checkpoint the full metadata segments take at most twice the live bytes of the
map, plus one segment. If the room or the budget of one checkpoint is too small for that, the next
ones go on. Of segments that are more than half dead on average, the emptiest hold fewer live bytes
than they give back, so relocating writes at most as much as the changes that made it necessary.
"""

import logging

import numpy as np
import trio

from blockdev.errors import DeviceError
from storage.checkpoint.metadata_writer import MetaWriter
from storage.checkpoint.staging import Frozen, read_page, store_page
from storage.format.entry import SEGMENT_SHIFT, STORED_BYTES_MAX
from storage.format.pages import CHUNK_BYTES, PAGE_BLOB_BYTES_MAX
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.members.segments import Role, SegmentTable, State

log = logging.getLogger("cenote.storage")

FOOTPRINT_MAX = 2
"""Full metadata segments take at most so many times the live bytes of the map."""

SPARE_SEGMENTS = 1
"""Full segments allowed beyond that: small pools have few metadata segments."""

BUDGET_BYTES = 8 << 20
"""Bytes that one checkpoint relocates beyond as many as it writes anyway: some 0.2 s."""

COST_BYTES_MIN = 2048
"""Bytes that a smaller page counts as: reading and writing it takes about as long."""

FREE_SEGMENTS_MIN = 3
"""With fewer free segments no page is relocated: the rest of the checkpoint may need them."""

PAGES_PER_TURN = 8
"""Pages between two turns of other tasks: a page takes some 100 us."""


class Relocator:
    """Empties metadata segments for a checkpointer."""

    def __init__(self, blockmap: BlockMap, table: SegmentTable, meta: MetaWriter) -> None:
        self.bytes_relocated = 0
        """Stored bytes of the pages that were written again since the pool was opened."""
        self._map = blockmap
        self._table = table
        self._meta = meta
        self._stuck: set[int] = set()
        """Segments with a page that cannot be read: left alone until the pool is opened again."""

    async def relocate(self, frozen: Frozen, written_bytes: int) -> None:
        """Write and stage the pages and directories of the emptiest segments anew, as far as the
        bound asks for it and the budget goes. A page that cannot be read stays, and is logged.

        Args:
            written_bytes: bytes that the checkpoint has written so far.

        Raises:
            MetaWriteError, NoSpaceError: as `MetaWriter.append`.
        """
        budget = BUDGET_BYTES + written_bytes
        numbers = self._victims(frozen, budget)
        victims = np.array(sorted(numbers), dtype=np.uint64)
        turns = 0
        for layer in frozen.layers if numbers else ():
            if layer.number in frozen.dying:
                continue  # checkpoints give back its pages soon
            for number in frozen.chunk_numbers(layer):
                if layer.directory.located.get(number, (0, 0))[0] >> SEGMENT_SHIFT in numbers:
                    # Staging the chunk makes this checkpoint write it again.
                    frozen.chunk(layer, number)
                    budget -= CHUNK_BYTES
                for page in frozen.pages_in(layer, number, victims):
                    if budget <= 0 or self._table.free_segments() < FREE_SEGMENTS_MIN:
                        return
                    budget -= await self._relocate_page(frozen, layer, page, numbers)
                    turns += 1
                    if turns % PAGES_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()

    def _victims(self, frozen: Frozen, budget: int) -> set[int]:
        """The emptiest segments: as many as the bound asks for and the budget is enough for. The
        first may hold more than the budget, and is then emptied in part."""
        size = self._table.segment_bytes
        excess = -FOOTPRINT_MAX * frozen.usage.map_bytes - SPARE_SEGMENTS * size
        found = []
        for segment in self._table.all():
            full = segment.state is State.SEALED and segment is not self._meta.segment
            if segment.role is Role.META and full:
                live = frozen.live.get(segment.number, 0) + frozen.delta[segment.number]
                if live:  # else this checkpoint frees it anyway
                    excess += size
                    found.append((live, segment.number))
        chosen: set[int] = set()
        for live, number in sorted(found):
            if excess <= 0 or (chosen and live > budget):
                break
            if number not in self._stuck:
                chosen.add(number)
                excess -= size
                budget -= live
        return chosen

    async def _relocate_page(
        self, frozen: Frozen, layer: Layer, number: int, victims: set[int]
    ) -> int:
        """Write and stage one page anew; returns the bytes to take off the budget."""
        row = frozen.row(layer, number)
        assert row is not None
        there = [at for at in (0, 2) if row[at] >> SEGMENT_SHIFT in victims]
        merged, blobs = None, {}
        try:
            if there[0] == 0 and row[2]:
                merged = await read_page(self._map, self._meta, frozen, layer, number)
            else:
                for at in there:
                    blobs[at] = await self._meta.fetch(row[at], row[at + 1], PAGE_BLOB_BYTES_MAX)
        except DeviceError as error:
            self._stuck |= {row[at] >> SEGMENT_SHIFT for at in there}
            log.warning("a damaged map page keeps its segment from being emptied: %s", error)
            return COST_BYTES_MIN
        if merged is not None:
            new_row = await store_page(self._meta, merged, row, whole=True)
        else:
            new_row = list(row)
            for at, blob in blobs.items():
                new_row[at : at + 2] = await self._meta.append(blob)
        frozen.replace_blobs([row], new_row)
        frozen.stage(layer, number, new_row)
        stored = sum(new_row[at + 1] % STORED_BYTES_MAX + 1 for at in there if new_row[at])
        self.bytes_relocated += stored
        return max(stored, COST_BYTES_MIN)
