"""Which stored blocks are alive: those that the map still names where they lie.

The record tables of a segment name layers as of when it was written. Merges have moved blocks
since, so the layer that owns a page now is looked up by the merges that were done.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import trio
from numpy.typing import NDArray

from blockdev.errors import DeviceError
from storage.catalogue.catalogue import Catalogue
from storage.format.commit import LayerExtents, expand_extents
from storage.format.entry import Words
from storage.format.pages import PAGE_BLOCKS
from storage.map.blockmap import BlockMap, by_page
from storage.map.layer import Layer

log = logging.getLogger("cenote.storage")

PAGES_PER_TURN = 8
"""Then others run: a page that is in memory takes about 20 us."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Blocks of one page of one layer that still lie where they were written: arrays of u64."""

    layer: int
    blocks: Words
    a: Words
    b: Words


class Liveness:
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
