"""Pages of the block map in memory, and the changes that wait for a checkpoint.

A page is the merged view of 1,024 blocks down the whole layer chain: an array of entries, read
one by one through a memoryview, in bulk by slices. It is immutable while it is shared by
several layers, and copied before the first change (R6).
"""

import numpy as np
from numpy.typing import NDArray

from storage.entry import ABSENT, INDEX_STEP, KIND_MASK, ZERO, Words
from storage.pageblob import PAGE_BLOCKS

PAGE_COST_BYTES = PAGE_BLOCKS * 16 + 700
"""Memory of one cached page with its Python objects."""

ROW_BYTES = 24
COUNT_SHIFT = 16
SLOT_MASK = (1 << COUNT_SHIFT) - 1


class Page:
    """A merged page. `words[2 * i]` and `words[2 * i + 1]` are the entry of block i."""

    __slots__ = ("entries", "hot", "owner", "words")

    def __init__(self, entries: Words, owner: int):
        self.entries = entries
        self.words = entries.data.cast("B").cast("Q")
        self.owner = owner
        """Number of the layer whose view this is; others that have not changed it share it."""
        self.hot = True
        """Touched since the clock hand last passed."""

    def copy_for(self, owner: int) -> "Page":
        """A copy for a layer that is about to change it."""
        return Page(self.entries.copy(), owner)


class PendingPage:
    """Durable changes of one page, oldest first: rows of three u64 in one flat buffer.

    Row: (slot | blocks << 16, word A, word B of the first block). One row may stand for a
    compressed extent, or a zero range, of several blocks.
    """

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows = bytearray()

    def expand(self) -> tuple[NDArray[np.int64], Words]:
        """(slots (n,), entries (n, 2)), one per block, oldest first, repeats included."""
        rows = np.frombuffer(bytes(self.rows), dtype="<u8").reshape(-1, 3)
        return expand_rows(rows)


def expand_rows(rows: Words) -> tuple[NDArray[np.int64], Words]:
    """One item per block: slots, shape (n,), and entries, shape (n, 2)."""
    heads = rows[:, 0].astype(np.int64)
    slots = heads & SLOT_MASK
    counts = heads >> COUNT_SHIFT
    entries = rows[:, 1:]
    if len(rows) == int(counts.sum()):
        return slots, entries
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    entries = np.repeat(entries, counts, axis=0)
    stored = (entries[:, 0] & np.uint64(KIND_MASK)) > ZERO
    entries[:, 1] += np.where(stored, within.astype(np.uint64) * np.uint64(INDEX_STEP), 0)
    return np.repeat(slots, counts) + within, entries


def settle(slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of several changes to the same slots is the last; shape as `slots`."""
    order = np.arange(len(slots))
    last = np.full(PAGE_BLOCKS, -1, dtype=np.int64)
    np.maximum.at(last, slots, order)
    winners: NDArray[np.bool_] = last[slots] == order
    return winners


def empty_entries() -> Words:
    """A page of absent entries, shape (1024, 2)."""
    return np.zeros((PAGE_BLOCKS, 2), dtype=np.uint64)


assert ABSENT == 0, "fresh pages rely on it"
