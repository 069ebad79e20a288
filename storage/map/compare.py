"""Finds the blocks that differ between two layers, exactly, at a cost that follows the changes.

The entries of merged pages are compared, not the history, so the layers in between may have been
merged or deleted since. Two layers can differ only in pages that were changed by a layer in the
ancestry of one of them and not of the other, so no other page is looked at. Neither layer has to be
an ancestor of the other: after a rollback, or between clones, the comparison is as exact.

Equal entries name the same place, and a place is never used again for other bytes, so blocks
reported as the same are the same. Entries may also differ because the cleaner has moved a block and
only one of the pages names its new place. Then one of the entries names a segment of moved blocks,
or one that was freed, and the block differs only if a layer in the ancestry of just one of the two
holds it. The same test decides for all blocks when a layer in either ancestry got copies of blocks
that it inherited (`storage.volumes.flatten`).
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
"""The block differs, and the layer holds data there."""
ZEROES = 2
"""The block differs, and reads as zeroes in the layer."""


class Comparison:
    """A view of the blocks of `layer` as `SAME`, `DATA` or `ZEROES`; see `storage.map.runs.View`.

    Args:
        base: the layer to compare with, all of it durable; None for all zeroes.
        first: first block of the range that will be asked about.
        end: the block after that range. The overlays of the range are read now.
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
        # A frozen base has overlays only while it gets copies of blocks that it inherits.
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
        """Which blocks hold data in both pages, at places that a move or a copy may explain."""
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
        """Which blocks of a page are held by a layer in the ancestry of only one of the two."""
        written = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
        for layer in apart(self._layer, self._base):
            if layer.owns(number):
                self.reads += 1
                written |= await own_blocks(self._map, layer, number)
        return written
