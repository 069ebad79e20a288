"""Which blocks of a page a layer itself holds, and how deep below another that layer lies.

A merged page tells where a block is stored, not whose it is. That is told by what the layer
stores of the page, and by the changes since.
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
"""Then 2 for the parent's blocks, and so on, as QEMU counts; 0 for those of nobody."""

_KIND = np.uint64(KIND_MASK)
_ZERO = np.uint64(ZERO)


async def own_blocks(blockmap: BlockMap, layer: Layer, number: int) -> Flags:
    """Which blocks of a page are the layer's own, data or zeroes; shape (1024,). Cost: up to two
    reads, as it is not kept in memory.

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
            continue  # a checkpoint moved things about
        for pending in (layer.frozen_pending.get(number), layer.pending.get(number)):
            for step in () if pending is None else pending.steps():
                if step.old is None:  # else what was moved was its own before
                    own[step.slots] = True
        return own


def is_zero(entries: Words) -> Flags:
    """Which entries read as zeroes; shape (n,) of (n, 2)."""
    zero: Flags = entries[:, 0] & _KIND <= _ZERO
    return zero


async def find_page(blockmap: BlockMap, layer: Layer, number: int) -> tuple[Page, int]:
    """The merged page, and how many were read for it. Raises as `own_blocks`."""
    page = blockmap.find_page(layer, number)
    return (await blockmap.page(layer, number), 1) if page is None else (page, 0)


class Depth:
    """How deep each block of a layer lies: 0 nowhere, 1 in the layer itself, 2 in its parent, and
    so on. Zeroes that nothing lies below are nowhere. See `storage.map.runs.View`.

    Cost: what is read of a page is what every layer stores of it, down to the one that holds the
    deepest block.
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
        undecided |= bool(self._held)  # what is not durable is in no page
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
