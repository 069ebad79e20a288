"""Estimates which blocks are written often: counts of writes, in a table of fixed size.

The cleaner stores blocks that are written often apart from the others. How often a block was moved
says little about that: the blocks that are written most die in the log and are never moved. Counts
of writes say more. They are halved again and again, so that old writes are forgotten, as in
Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy" (2017), section 3.3.

The counts only steer where blocks go: they are kept in memory, start at zero, and blocks share a
counter if there are more blocks than counters.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from storage.format.entry import Words

COUNTERS_MIN, COUNTERS_MAX = 1 << 12, 1 << 22
"""Counters of one byte. The maximum tells every block apart in 16 GiB, and hot blocks in more."""

HALVE_AFTER = 2
"""Writes per counter between two halvings: with even writes, counts are between 2 and 4."""

HOT = 3
"""A block with this count or more is hot. Simulated with 80 % of the space alive and Zipf writes
(theta 0.99), the cleaner moves 1.14 bytes per byte committed; 1.15 with half of HALVE_AFTER and
HOT, 1.22 when it goes by how often blocks were moved, 1.06 when it knows the law. With even writes
it moves 1.64 whatever the two values are."""

LAYER_STEP = 0x9E3779B1
"""Offset of the counters of successive layers. Odd and large, so that one block number has
different counters in two layers."""


class Heat:
    """Counts writes to blocks; `blocks` is about the number of blocks that there may be."""

    def __init__(self, blocks: int):
        size = min(max(1 << (blocks - 1).bit_length(), COUNTERS_MIN), COUNTERS_MAX)
        self._counts = np.zeros(size, dtype=np.uint8)
        self._mask = np.uint64(size - 1)
        self._left = HALVE_AFTER * size

    def written(self, layer: int, blocks: Collection[int]) -> None:
        """Count one write to each of these blocks of a layer. Cost: 50 us for 1,024 blocks."""
        at = self._places(layer, np.fromiter(blocks, dtype=np.uint64, count=len(blocks)))
        counts = self._counts[at]
        self._counts[at] = counts + (counts < np.iinfo(np.uint8).max)
        self._left -= len(blocks)
        if self._left <= 0:
            self._counts >>= 1
            self._left = HALVE_AFTER * len(self._counts)

    def is_hot(self, layer: int, blocks: Words) -> NDArray[np.bool_]:
        """Whether each of these blocks of a layer is written often; both of shape (n,)."""
        hot: NDArray[np.bool_] = self._counts[self._places(layer, blocks)] >= HOT
        return hot

    def _places(self, layer: int, blocks: Words) -> NDArray[np.intp]:
        step = np.uint64(layer * LAYER_STEP & 0xFFFFFFFF)
        return ((blocks + step) & self._mask).astype(np.intp)
