"""Finds which blocks of a page a layer itself holds, and the depth in its ancestry of every block.

A merged page says where a block is stored, not which layer holds it. The layer's own base and delta
of the page say that, together with its changes since.
"""

import numpy as np

from storage.format.entry import KIND_MASK, ZERO, Words
from storage.format.pages import PAGE_BLOCKS, PAGE_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.extents import Flags, Overlays
from storage.map.layer import Layer
from storage.map.page import Page
from storage.map.runs import States

OWN = 1
"""The depth of a layer's own blocks; 2 for its parent's, and so on, as QEMU counts; 0 for blocks
that no layer holds."""

_KIND = np.uint64(KIND_MASK)
_ZERO = np.uint64(ZERO)


async def own_blocks(blockmap: BlockMap, layer: Layer, number: int) -> Flags:
    """Which blocks of a page are the layer's own, data or zeroes; shape (1024,). Cost: up to two
    reads, as ownership is not kept in memory.

    Raises:
        ChecksumError, DamagedError: a page of the map has no good copy.
    """

    while True:
        generation = blockmap.generation
        row = layer.directory.get(number)
        own = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
        if row is not None:
            own |= (await blockmap.own_of(row, number)).own
        if generation != blockmap.generation:
            continue  # a checkpoint may have moved the page meanwhile
        for pending in (layer.frozen_pending.get(number), layer.pending.get(number)):
            for step in () if pending is None else pending.steps():
                if step.old is None:  # else a move, whose blocks were the layer's own before
                    own[step.slots] = True
        return own


def is_zero(entries: Words) -> Flags:
    """Which entries, shape (n, 2), read as zeroes; shape (n,)."""
    zero: Flags = entries[:, 0] & _KIND <= _ZERO
    return zero


async def find_page(blockmap: BlockMap, layer: Layer, number: int) -> tuple[Page, int]:
    """The merged page, and the number of pages read for it, 0 or 1. Raises as `own_blocks`."""
    page = blockmap.find_page(layer, number)
    return (await blockmap.page(layer, number), 1) if page is None else (page, 0)


class Depth:
    """A view of the depth of each block: 1 for the layer's own, 2 for its parent's, and so on; 0
    for blocks that no layer holds, and for zeroes of the root. See `storage.map.runs.View`.

    Cost: of each page, the bases and deltas of all layers from this one to the one that holds the
    deepest block are read.
    """

    def __init__(self, blockmap: BlockMap, layer: Layer, first: int, end: int) -> None:
        self.reads = 0
        self._map = blockmap
        self._layer = layer
        self._held = {
            up.number: Overlays(up.overlays, first, end) for up in layer.ancestry() if up.overlays
        }

    def pages(self, low: int, end: int, most: int) -> list[int]:
        """See View."""
        numbers = {*self._layer.mapped_pages(low, end, most)}
        for overlays in self._held.values():
            numbers.update(overlays.pages())
        return sorted(numbers)[:most]

    async def states(self, number: int) -> States:
        """See View."""
        page, reads = await find_page(self._map, self._layer, number)
        self.reads += reads
        zero = is_zero(page.entries)
        undecided = page.entries[:, 0] & _KIND != 0
        undecided |= bool(self._held)  # blocks that are not durable are in no page
        depths = np.zeros(PAGE_BLOCKS, dtype=np.uint32)
        for depth, up in enumerate(self._layer.ancestry(), OWN):
            if not undecided.any():
                break
            own = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
            if up.owns(number):
                self.reads += up.directory.get(number) is not None
                own |= await own_blocks(self._map, up, number)
            if up.number in self._held:
                self._held[up.number].lay_over(zero, number << PAGE_SHIFT, own)
            own &= undecided
            undecided &= ~own
            if up.parent is None:
                own &= ~zero
            depths[own] = depth
        return depths
