"""Merging: a deleted layer that one other stands on goes into that one.

A checkpoint does it page by page, a bounded number at a time, in what it stages: the layers
change hands exactly when the checkpoint is published, so a crash at any point finds the
merge where the last checkpoint left it (R8, R12). Nothing is logged and nothing is copied: stored
blocks only change their owner.

    page only in the upper layer    its row moves to the lower layer: no I/O
    page only in the lower layer    nothing
    page in both                    read both; what the lower one overwrote is given back, and the
                                    rest becomes its own: one delta or base is written

So the I/O follows the smaller of the two layers. Pages in memory stay as they are, as what a block
of the lower layer holds does not change, but for those that name where a block of the upper one
was before it was moved: that was a hint, and now it has to be exact. When the upper layer stores
nothing any more it leaves the tree. Layers below have deltas that count from the nearest base above
them; whichever base the merged page keeps or gets, it holds nothing that those deltas do not
repeat.
"""

import trio

from storage.checkpoint.metadata_writer import MetaWriter
from storage.checkpoint.staging import NO_ROW, Frozen, read_page, store_page
from storage.format.pages import CHUNK_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer

PAGES_PER_TURN = 8
"""Then others run: a page takes some 100 us."""

CHUNK_COST_PAGES = 8
"""What a directory chunk costs a budget of pages: two whole ones are held until the checkpoint is
done, and written."""


class Merger:
    """Merges layers for a checkpointer."""

    def __init__(self, blockmap: BlockMap, meta: MetaWriter) -> None:
        self._map = blockmap
        self._meta = meta

    async def merge(self, frozen: Frozen, upper: Layer, budget: int) -> int:
        """Move pages into the layer that stands on `upper`, as far as `budget` goes; returns
        how much of it is used: one for each page that had to be read and written."""
        lower = self._map.layers[frozen.merging[upper.number]]
        frozen.usage.move(upper.number, lower.number)
        done = 0
        for number in frozen.chunk_numbers(upper):
            if done >= budget:
                return done
            done += CHUNK_COST_PAGES
            theirs = frozen.chunk(upper, number)
            ours = frozen.chunk(lower, number)
            has_upper = (theirs[:, 0] | theirs[:, 2]) != 0
            has_lower = (ours[:, 0] | ours[:, 2]) != 0
            only = has_upper & ~has_lower
            ours[only] = theirs[only]
            theirs[only] = 0
            for within in (has_upper & has_lower).nonzero()[0].tolist():
                if done >= budget:
                    return done
                await self._merge_page(frozen, upper, lower, number << CHUNK_SHIFT | within)
                done += 1
                if done % PAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
        return done

    async def _merge_page(self, frozen: Frozen, upper: Layer, lower: Layer, number: int) -> None:
        merged = await read_page(self._map, self._meta, frozen, lower, number)
        above = await read_page(self._map, self._meta, frozen, upper, number)
        upper_row, lower_row = frozen.row(upper, number), frozen.row(lower, number)
        assert upper_row is not None
        assert lower_row is not None
        overwritten = above.own & merged.own
        inherited = above.own & ~merged.own
        frozen.displace(lower.number, above.entries[overwritten])
        merged.own |= inherited
        # They were hints, and may be older than a move; what is owned has to be exact.
        merged.changed |= inherited & (merged.entries != above.entries).any(axis=1)
        merged.entries[inherited] = above.entries[inherited]
        if lower_row[0]:
            # Its base holds these as another's: a delta says that they are its own now.
            merged.changed |= inherited
            base = lower_row[:2]
        else:
            # The lower delta repeats what the upper one holds, but not whose it is since a merge.
            merged.changed |= above.changed
            base = upper_row[:2]
        row = [*base, 0, 0]
        if merged.changed.any() or not base[0]:
            row = await store_page(self._meta, merged, row)
        cached = lower.pages.get(number)
        if cached is not None and (cached.entries != merged.entries)[inherited].any():
            cached = None
        frozen.merged.append((lower, number, cached))
        frozen.replace_blobs([upper_row, lower_row], row)
        frozen.stage(lower, number, row)
        frozen.stage(upper, number, NO_ROW)
