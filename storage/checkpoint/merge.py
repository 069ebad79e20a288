"""Merges a deleted layer that has one child into that child.

A checkpoint merges page by page, a bounded number at a time, in the state that it stages: pages
change their owner exactly when the checkpoint is published, so a crash at any point finds the
merge where the last checkpoint left it (R8, R12). Nothing is logged and no block is copied: stored
blocks only change their owner.

    page only in the parent    its row moves to the child: no I/O
    page only in the child     nothing
    page in both               read both; blocks that the child overwrote are given back, the other
                               ones of the parent become the child's: one delta or base is written

So the I/O follows the smaller of the two layers. Cached pages stay valid, as the content of the
child's blocks does not change. Pages that name the place of a parent's block before the cleaner
moved it are dropped: the entry was a hint, and now it has to be exact. When the parent stores
nothing any more, it leaves the tree. The deltas of the child's descendants count from the nearest
base in their ancestry; whichever base the merged page keeps or gets, it holds no change that the
descendants' deltas do not repeat.
"""

import trio

from storage.checkpoint.metadata_writer import MetaWriter
from storage.checkpoint.staging import NO_ROW, Frozen, read_page, store_page
from storage.format.pages import CHUNK_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer

PAGES_PER_TURN = 8
"""Pages between two turns of other tasks: a page takes some 100 us."""

CHUNK_COST_PAGES = 8
"""Pages that a directory chunk counts as: the parent's and the child's whole chunk are held in
memory until the checkpoint is done, and written."""


class Merger:
    """Merges layers for a checkpointer."""

    def __init__(self, blockmap: BlockMap, meta: MetaWriter) -> None:
        self._map = blockmap
        self._meta = meta

    async def merge(self, frozen: Frozen, parent: Layer, budget: int) -> int:
        """Move pages of a deleted layer into its child, as far as `budget` goes; returns the used
        part of it: one for each page read and written, and the cost of each chunk.

        Raises:
            ChecksumError, DamagedError: a page of the map has no good copy.
            MetaWriteError, NoSpaceError: as `MetaWriter.append`.
        """
        child = self._map.layers[frozen.merging[parent.number]]
        frozen.usage.move(parent.number, child.number)
        done = 0
        for number in frozen.chunk_numbers(parent):
            if done >= budget:
                return done
            done += CHUNK_COST_PAGES
            theirs = frozen.chunk(parent, number)
            ours = frozen.chunk(child, number)
            in_parent = (theirs[:, 0] | theirs[:, 2]) != 0
            in_child = (ours[:, 0] | ours[:, 2]) != 0
            only = in_parent & ~in_child
            ours[only] = theirs[only]
            theirs[only] = 0
            for within in (in_parent & in_child).nonzero()[0].tolist():
                if done >= budget:
                    return done
                await self._merge_page(frozen, parent, child, number << CHUNK_SHIFT | within)
                done += 1
                if done % PAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
        return done

    async def _merge_page(self, frozen: Frozen, parent: Layer, child: Layer, number: int) -> None:
        merged = await read_page(self._map, self._meta, frozen, child, number)
        theirs = await read_page(self._map, self._meta, frozen, parent, number)
        parent_row, child_row = frozen.row(parent, number), frozen.row(child, number)
        assert parent_row is not None
        assert child_row is not None
        overwritten = theirs.own & merged.own
        inherited = theirs.own & ~merged.own
        frozen.displace(child.number, theirs.entries[overwritten])
        merged.own |= inherited
        # The child's entries were hints, and may be older than a move; own entries must be exact.
        merged.changed |= inherited & (merged.entries != theirs.entries).any(axis=1)
        merged.entries[inherited] = theirs.entries[inherited]
        if child_row[0]:
            # The child's base holds these as inherited: a delta says that they are its own now.
            merged.changed |= inherited
            base = child_row[:2]
        else:
            # The child's delta repeats the entries of the parent's delta, but not those that an
            # earlier merge made the parent's own.
            merged.changed |= theirs.changed
            base = parent_row[:2]
        row = [*base, 0, 0]
        if merged.changed.any() or not base[0]:
            row = await store_page(self._meta, merged, row)
        cached = child.pages.get(number)
        if cached is not None and (cached.entries != merged.entries)[inherited].any():
            cached = None
        frozen.merged.append((child, number, cached))
        frozen.replace_blobs([parent_row, child_row], row)
        frozen.stage(child, number, row)
        frozen.stage(parent, number, NO_ROW)
