"""Finds the volumes and snapshots that read a damaged place, for reports."""

import numpy as np
import trio

from blockdev.errors import DeviceError
from storage.catalogue.catalogue import Catalogue
from storage.format.entry import BLOCK_SHIFT, Words
from storage.format.pages import PAGE_BLOCKS, PAGE_SHIFT
from storage.map.blockmap import BlockMap, by_page
from storage.map.layer import Layer
from storage.verify.scrub_pass import HELD_MAX, Held

LOOKED_AT_MAX = 256
"""At most so many names are looked at for one damaged place, volumes before snapshots."""


class Affected:
    """Looks stored blocks up from the names that may read them."""

    def __init__(self, blockmap: BlockMap, durable: Catalogue) -> None:
        self._map = blockmap
        self._durable = durable

    async def of_blocks(self, owner: int, blocks: Words, a: Words, b: Words) -> list[Held]:
        """The ranges that are read from these places, at most HELD_MAX.

        Args:
            owner: the layer of the blocks.
            blocks: ascending block numbers, shape (n,).
            a, b: words A and B of the blocks' entries, each of shape (n,).
        """
        found: list[Held] = []
        for name, layer in self._exports(owner):
            await trio.lowlevel.checkpoint()
            seen: list[int] = []
            for number, group in by_page(blocks):
                try:
                    page = await self._map.page(layer, number)
                except DeviceError:
                    continue  # the page is reported for itself
                words = page.entries[(blocks[group] & np.uint64(PAGE_BLOCKS - 1)).astype(np.intp)]
                same = group[(words[:, 0] == a[group]) & (words[:, 1] == b[group])]
                seen += blocks[same].tolist()
            found += [Held(name, first << BLOCK_SHIFT, n << BLOCK_SHIFT) for first, n in runs(seen)]
            if len(found) >= HELD_MAX:
                break
        return found[:HELD_MAX]

    def of_page(self, owner: int, number: int) -> list[Held]:
        """The ranges for which a page of a layer is read; some blocks may be of other layers."""
        first, length = number << PAGE_SHIFT + BLOCK_SHIFT, 1 << PAGE_SHIFT + BLOCK_SHIFT
        return [Held(name, first, length) for name, _ in self._exports(owner)[:HELD_MAX]]

    def _exports(self, owner: int) -> list[tuple[str, Layer]]:
        """The names of a layer and of its descendants, each with its layer, volumes first."""
        volumes = self._durable.volumes.items()
        names = [(name, volume.head) for name, volume in volumes]
        names += [
            (f"{name}@{snapshot}", record.layer)
            for name, volume in volumes
            for snapshot, record in volume.snapshots.items()
        ]
        found: list[tuple[str, Layer]] = []
        reaches: dict[int, bool] = {owner: True, 0: False}
        for name, number in names:
            if self._reaches(number, reaches) and number in self._map.layers:
                found.append((name, self._map.layers[number]))
                if len(found) == LOOKED_AT_MAX:
                    break
        return found

    def _reaches(self, number: int, known: dict[int, bool]) -> bool:
        """Whether a layer is the owner or descends from it; answers are added to `known`."""
        path = []
        while number not in known:
            path.append(number)
            record = self._durable.layers.get(number)
            number = record.parent if record is not None else 0
        known.update(dict.fromkeys(path, known[number]))
        return known[number]


def runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Split ascending block numbers into runs of neighbours: (first, count) of each."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and sum(found[-1]) == block:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found
