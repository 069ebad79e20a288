"""Changes of a page that wait for a checkpoint take effect in the order of their commits."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.checkpoint.staging import GATHERED_MAX, Frozen
from storage.format.checkpoint_root import LogPosition
from storage.format.entry import BLOCK_BYTES, RAW, SEGMENT_SHIFT, ZERO, Words
from storage.format.pages import PAGE_BLOCKS
from storage.map.page import COUNT_SHIFT, PendingPage
from storage.map.page_reader import Merged
from storage.map.usage import Usage

SLOTS = 6
LAYER = 1

Entry = tuple[int, int]


def entry(version: int) -> Entry:
    """A raw block of its own; its segment is its version."""
    return version << SEGMENT_SHIFT | RAW, BLOCK_BYTES - 1


@dataclass(frozen=True)
class Write:
    """One commit that writes blocks, maybe one of them twice."""

    slots: tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """One commit that moves blocks; if `late`, from the places they had one change earlier."""

    slots: tuple[int, ...]
    late: bool


slots = st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=4)
changes = st.lists(
    st.builds(Write, slots.map(tuple))
    | st.builds(Move, slots.map(lambda found: tuple(set(found))), st.booleans()),
    max_size=12,
)


class Model:
    """A page as a dictionary, changed block by block; all its blocks are stored at the start."""

    def __init__(self, pending: PendingPage) -> None:
        self.entries = {slot: entry(slot) for slot in range(SLOTS)}
        self.dead: Counter[Entry] = Counter()
        self._before = dict(self.entries)
        self._pending = pending
        self._versions = SLOTS

    def make(self, change: Write | Move) -> None:
        before = self._before if isinstance(change, Move) and change.late else dict(self.entries)
        self._before = dict(self.entries)
        rows = []
        for slot in change.slots:
            self._versions += 1
            new = entry(self._versions)
            if isinstance(change, Move):
                rows.append((slot | 1 << COUNT_SHIFT, *before[slot]))
            rows.append((slot | 1 << COUNT_SHIFT, *new))
            if isinstance(change, Write) or before[slot] == self.entries[slot]:
                self.dead[self.entries[slot]] += 1
                self.entries[slot] = new
            else:
                self.dead[new] += 1
        add = self._pending.add_moves if isinstance(change, Move) else self._pending.add
        add(np.array(rows, dtype="<u8"))


def made(changed: list[Write | Move]) -> tuple[Model, PendingPage]:
    pending = PendingPage()
    model = Model(pending)
    for change in changed:
        model.make(change)
    return model, pending


def new_frozen() -> Frozen:
    return Frozen(LogPosition(0, 0, 0, 0), b"", {}, set(), {}, set(), [], {}, {}, Usage())


def base() -> Words:
    return np.array([entry(slot) for slot in range(SLOTS)], dtype=np.uint64)


def as_tuples(entries: Words) -> list[Entry]:
    return [(a, b) for a, b in entries.tolist()]


@given(changes)
def test_changes_take_effect_in_the_order_of_the_log(changed: list[Write | Move]) -> None:
    """Goal: the page is as if each change had been applied alone; a move that comes too late
    changes nothing (R11)."""
    model, pending = made(changed)
    entries = base()
    for step in pending.steps():
        step.apply(entries)
    assert as_tuples(entries) == list(model.entries.values())
    if changed:
        assert len(pending.named()) == sum(len(change.slots) for change in changed)


@given(changes)
def test_each_dead_entry_is_counted_once(changed: list[Write | Move]) -> None:
    """Goal: a checkpoint takes each entry that was replaced, or came too late, off the live counts
    once; a layer whose blocks were replaced stores as many blocks as before."""
    model, pending = made(changed)
    frozen = new_frozen()
    frozen.usage.add(LAYER, base())
    merged = Merged()
    merged.entries[:SLOTS] = base()
    merged.own[:SLOTS] = True
    frozen.resolve(LAYER, merged, pending, rootless=True)
    frozen.settle(LAYER)
    assert as_tuples(merged.entries[:SLOTS]) == list(model.entries.values())
    assert {n: -c for n, c in frozen.delta.items() if c} == {
        a >> SEGMENT_SHIFT: count * BLOCK_BYTES for (a, _), count in model.dead.items()
    }
    assert frozen.usage.mapped_bytes(LAYER) == SLOTS * BLOCK_BYTES


def test_the_entries_that_wait_to_be_counted_are_bounded() -> None:
    """Goal: however many blocks change at once, only so many entries wait to be counted."""
    frozen = new_frozen()
    waiting = []
    for _ in range(3 * GATHERED_MAX // PAGE_BLOCKS):
        pending = PendingPage()
        pending.add(np.array([(PAGE_BLOCKS << COUNT_SHIFT, ZERO, 0)], dtype="<u8"))
        frozen.resolve(LAYER, Merged(), pending, rootless=True)
        waiting.append(frozen._gathered)
    assert max(waiting) < GATHERED_MAX
    assert waiting.count(0) == 3
