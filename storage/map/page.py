"""Pages of the block map in memory, and the changes that wait for a checkpoint.

A page is the merged view of 1,024 blocks over a layer and all its ancestors: an array of entries,
read one by one through a memoryview, in bulk by slices. It is immutable while several layers share
it, and copied before the first change (R6).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.format.entry import ABSENT, INDEX_STEP, KIND_MASK, ZERO, Words
from storage.format.pages import PAGE_BLOCKS

PAGE_COST_BYTES = PAGE_BLOCKS * 16 + 700
"""Memory of one cached page with its Python objects."""

ROW_BYTES = 24
COUNT_SHIFT = 16
_FIRST, _TO, _FROM = 1 << 60, 1 << 61, 1 << 62
"""Marks in the head of a row: the first move of a commit, a move's new place, and its old place."""
SLOT_MASK = (1 << COUNT_SHIFT) - 1


class Page:
    """A merged page. `words[2 * i]` and `words[2 * i + 1]` are the entry of block i."""

    __slots__ = ("entries", "hot", "owner", "words")

    def __init__(self, entries: Words, owner: int):
        self.entries = entries
        self.words = entries.data.cast("B").cast("Q")
        self.owner = owner
        """Number of the layer whose view this is; descendants that have not changed it share it."""
        self.hot = True
        """Used since the clock hand last passed."""

    def copy_for(self, owner: int) -> "Page":
        """A copy for a layer that is about to change it."""
        return Page(self.entries.copy(), owner)


class Step(NamedTuple):
    """Changes of one page that take effect together: slots (n,), entries and old (n, 2)."""

    slots: NDArray[np.int64]
    entries: Words
    old: Words | None
    """For moves: the entry that a slot must hold for its change to count; no slot comes twice."""

    def apply(self, entries: Words) -> None:
        """Change the merged entries of a page, shape (1024, 2); a slot's last change counts."""
        if self.old is None:
            entries[self.slots] = self.entries
            return
        hits = (entries[self.slots] == self.old).all(axis=1)
        entries[self.slots[hits]] = self.entries[hits]


class PendingPage:
    """Durable changes of one page, oldest first: rows of three u64 in one flat buffer.

    Row: (slot | blocks << 16, word A, word B of the first block). One row may stand for a
    compressed extent, or a zero range, of several blocks. A move is two marked rows: the old place
    of the blocks, then the new one (R11).
    """

    __slots__ = ("has_moves", "rows")

    def __init__(self) -> None:
        self.rows = bytearray()
        self.has_moves = False

    def add(self, rows: Words) -> None:
        """Append changes, shape (n, 3)."""
        self.rows += rows.tobytes()

    def add_moves(self, rows: Words) -> None:
        """Append the moves of one commit, shape (2n, 3): old and new place in turn, unmarked."""
        marked = rows.copy()
        marked[0::2, 0] |= np.uint64(_FROM)
        marked[1::2, 0] |= np.uint64(_TO)
        marked[0, 0] |= np.uint64(_FIRST)
        self.rows += marked.tobytes()
        self.has_moves = True

    def steps(self) -> list[Step]:
        """All changes as steps to apply in turn, one item per block in each step.

        Changes of one block keep their order. Blocks that change once, which are most, come first,
        in two steps at most, however many commits changed them.
        """
        rows = np.frombuffer(bytes(self.rows), dtype="<u8").reshape(-1, 3)
        if not self.has_moves:
            return [Step(*expand_rows(rows), None)]
        moving = (rows[:, 0] & np.uint64(_FROM | _TO)) != 0
        begins = (rows[:, 0] & np.uint64(_FIRST)) != 0
        begins[1:] |= moving[1:] != moving[:-1]
        groups = np.cumsum(begins)
        plain = rows.copy()
        plain[:, 0] &= np.uint64(_FIRST - 1)
        written = _Changes.of(plain[~moving], groups[~moving], None)
        moved = _Changes.of(plain[moving][1::2], groups[moving][1::2], plain[moving][0::2])
        often = np.bincount(np.concatenate([written.slots, moved.slots])) > 1
        steps = [step for kind in (written, moved) for step in kind.steps(~often[kind.slots])]
        again = [kind.groups[often[kind.slots]] for kind in (written, moved)]
        for group in np.unique(np.concatenate(again)).tolist():
            for kind in (written, moved):
                steps += kind.steps(often[kind.slots] & (kind.groups == group))
        return steps

    def named(self) -> Words:
        """Every entry that these changes bring, shape (n, 2), replaced entries included."""
        return np.concatenate([step.entries for step in self.steps()])


class _Changes(NamedTuple):
    """The writes, or the moves, of one page: one item per block. `groups` numbers the writes
    between two moves, and the moves of one commit, in order. No block comes twice in a group of
    moves.
    """

    slots: NDArray[np.int64]
    entries: Words
    groups: NDArray[np.int64]
    old: Words | None

    @classmethod
    def of(cls, rows: Words, groups: NDArray[np.int64], from_rows: Words | None) -> "_Changes":
        slots, entries = expand_rows(rows)
        counts = rows[:, 0].astype(np.int64) >> COUNT_SHIFT
        old = None if from_rows is None else expand_rows(from_rows)[1]
        return cls(slots, entries, np.repeat(groups, counts), old)

    def steps(self, chosen: NDArray[np.bool_]) -> list[Step]:
        """The chosen changes as one step, or no step when none is chosen."""
        if not chosen.any():
            return []
        old = None if self.old is None else self.old[chosen]
        return [Step(self.slots[chosen], self.entries[chosen], old)]


def expand_rows(rows: Words) -> tuple[NDArray[np.int64], Words]:
    """Expand rows, shape (m, 3), to one item per block: slots, (n,), and entries, (n, 2)."""
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
    """Which changes are the last of their slot; flags, shape as `slots`."""
    order = np.arange(len(slots))
    last = np.full(PAGE_BLOCKS, -1, dtype=np.int64)
    np.maximum.at(last, slots, order)
    winners: NDArray[np.bool_] = last[slots] == order
    return winners


def empty_entries() -> Words:
    """A page of absent entries, shape (1024, 2)."""
    return np.zeros((PAGE_BLOCKS, 2), dtype=np.uint64)


assert ABSENT == 0, "fresh pages rely on it"
