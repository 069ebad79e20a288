"""What differs between two layers: exact to the block, at a cost that follows what was changed.

Two views are compared, not two histories: entries of merged pages, wherever the layers between
went since. Only pages that a layer has changed which one of the two stands on and the other does
not can differ, so nothing else is looked at. The layers need not stand on each other: after a
rollback, or between clones, what differs is told just as well.

Equal entries name the same place, and a place never comes to mean something else, so what is called
the same is the same. Entries may also differ because the cleaner has moved a block and only one of
the pages knows. Then one of them names a place that blocks were moved to, or one that is gone, and
it is asked whether any layer between holds the block. So it is for all blocks when a layer that one
of the two stands on got copies of what it inherited (`storage.volumes.flatten`).
"""

import numpy as np

from storage.format.entry import Words, segments_of
from storage.format.pages import PAGE_BLOCKS, PAGE_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.extents import Flags, Overlays
from storage.map.layer import Layer, apart, changed_pages
from storage.map.ownership import find_page, is_zero, own_blocks
from storage.map.runs import States
from storage.members.segments import Role, SegmentTable, State

SAME = 0
DATA = 1
"""It differs, and is data now."""
ZEROES = 2
"""It differs, and reads as zeroes now."""


class Comparison:
    """A view of blocks as `SAME`, `DATA` or `ZEROES`; see `storage.map.runs.View`.

    Args:
        base: what is compared with; None for nothing, all zeroes. All of it is durable.
        first: the range of blocks that will be asked about,
        end: and its end. What is not durable is looked at now.
    """

    def __init__(
        self, blockmap: BlockMap, table: SegmentTable, layer: Layer, base: Layer | None,
        first: int, end: int,
    ):  # fmt: skip
        self.reads = 0
        self._map = blockmap
        self._table = table
        self._layer = layer
        self._base = base
        both = (layer,) if base is None else (layer, base)
        self._copied = any(up.copied for each in both for up in each.ancestry())
        # What a frozen layer still gets are copies of what it inherits.
        assert base is None or self._copied or not base.drained_overlays()
        parts = layer.drained_overlays()
        self._overlays = Overlays(parts, first, end) if parts else None

    def pages(self, low: int, end: int, most: int) -> list[int]:
        """See View."""
        numbers = changed_pages(apart(self._layer, self._base), low, end, most)
        if self._overlays is None:
            return numbers
        found = {*numbers, *self._overlays.pages()}
        for start, stop in self._overlays.zero_ranges():
            first_page, end_page = start >> PAGE_SHIFT, (stop - 1 >> PAGE_SHIFT) + 1
            found.update(self._layer.mapped_pages(max(low, first_page), min(end, end_page), most))
        return sorted(number for number in found if low <= number < end)[:most]

    async def states(self, number: int) -> States:
        """See View."""
        page, reads = await find_page(self._map, self._layer, number)
        if self._base is None:
            zero = is_zero(page.entries)
            differs, base_zero = ~zero, np.ones(PAGE_BLOCKS, dtype=np.bool_)
        else:
            other, more_reads = await find_page(self._map, self._base, number)
            reads += more_reads
            zero, base_zero = is_zero(page.entries), is_zero(other.entries)
            differs = (page.entries != other.entries).any(axis=1)
            differs &= ~(zero & base_zero)
            maybe_moved = differs & self._maybe_moved(page.entries, other.entries)
            if maybe_moved.any():
                differs &= ~maybe_moved | await self._written(number)
        self.reads += reads
        if self._overlays is not None:
            held = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
            self._overlays.lay_over(zero, number << PAGE_SHIFT, held)
            differs = (differs | held) & ~(zero & base_zero)
        states: States = np.where(differs, np.where(zero, ZEROES, DATA), SAME).astype(np.uint32)
        return states

    def _maybe_moved(self, one: Words, other: Words) -> Flags:
        """Which blocks are stored in both pages, and in one at least where moved blocks are."""
        if self._copied:
            return ~(is_zero(one) | is_zero(other))
        segments = segments_of(np.stack((one[:, 0], other[:, 0])))
        moved = [n for n in np.unique(segments).tolist() if self._holds_moved(n)]
        there = np.isin(segments, np.array(moved, dtype=np.uint64))
        maybe: Flags = (there[0] | there[1]) & ~(is_zero(one) | is_zero(other))
        return maybe

    def _holds_moved(self, number: int) -> bool:
        segment = self._table.get(number)
        return segment is None or segment.state is State.FREED or segment.role is not Role.LOG

    async def _written(self, number: int) -> Flags:
        """Which blocks of a page some layer holds that only one of the two stands on."""
        written = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
        for layer in apart(self._layer, self._base):
            if layer.owns(number):
                self.reads += 1
                written |= await own_blocks(self._map, layer, number)
        return written
