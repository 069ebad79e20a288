"""Finds the stored blocks that are alive: the map still names the place where they lie.

The record tables of a segment name layers as of the time when it was written. Merges may have moved
the blocks to other layers since, so the merges are followed to the layer that owns a page now.
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
"""Pages between two turns of other tasks: a page that is in memory takes about 20 us."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Live blocks of one page of one layer: numbers, words A and words B, each of shape (n,)."""

    layer: int
    blocks: Words
    a: Words
    b: Words


class Liveness:
    """Tells which stored blocks are alive. It locks nothing, so an answer may be outdated as soon
    as it is given, which is why moves are conditional (R11)."""

    def __init__(self, blockmap: BlockMap, durable: Catalogue) -> None:
        self._map = blockmap
        self._durable = durable

    async def of(self, extents: list[LayerExtents]) -> list[Alive]:
        """The live blocks of these extents, ordered by layer and block. The blocks of a page that
        cannot be read count as dead; it is logged.
        """
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
        """The layer that owns now the blocks that layer `number` stored of a page: itself, or the
        layer that it was merged into. None when all of them are dead.
        """
        while True:
            layer = self._map.layers.get(number)
            record = self._durable.layers.get(number)
            if layer is not None and (record is None or record.dying):
                return None
            if layer is not None and layer.owns(page):
                return layer
            heir = merging.get(number) if layer is not None else self._durable.merged_into(number)
            if heir is None:
                return None
            number = heir


def _joined(extents: list[LayerExtents]) -> Iterator[tuple[int, Words, Words, Words]]:
    """Yield (layer, blocks, words A, words B) by ascending layer; blocks are sorted, and versions
    of one block stay in the order of `extents`.
    """
    by_layer: dict[int, list[tuple[Words, Words, Words]]] = {}
    for each in extents:
        by_layer.setdefault(each.layer, []).append(expand_extents(each))
    for number in sorted(by_layer):
        columns = [np.concatenate(parts) for parts in zip(*by_layer[number], strict=True)]
        order: NDArray[np.intp] = np.argsort(columns[0], kind="stable")
        blocks, a, b = (column[order] for column in columns)
        yield number, blocks, a, b
