"""Planted bugs: the simulation must report a violation for each.

Method of all: replace one function of the engine by a version with a bug that storage engines have
had, and run seeds until one fails. Without a bug these seeds pass: see `test_simulation`. More
are in `tests/crash/test_planted_bugs.py` (skipped flushes, reused tails, unchecked payloads,
unequal copies, early answers, forgotten jumps), and there in `test_faults.py` (a retried flush),
`test_corruption.py` (an uncompared checksum) and `test_cache_lost.py`.
"""

import dataclasses
from collections.abc import Collection
from uuid import UUID

import pytest

from storage.checkpoint.checkpointer import Checkpointer
from storage.checkpoint.staging import Frozen
from storage.format.commit import Records
from storage.format.superblock import Superblock
from storage.log.buffer import WriteBuffer
from storage.log.committer import FLUSH_BYTES, Log, Written
from storage.log.encoded import PlacedCommit
from storage.map.page import PendingPage, Step
from storage.map.page_reader import Merged
from storage.members.member import Member
from storage.members.resync import Resync
from storage.members.segments import Segment, SegmentTable
from storage.pool import Pool
from storage.recovery import assemble
from tests.sim.actions import WEIGHTS
from tests.sim.plan import make_plan
from tests.sim.run import guarded

SEEDS = range(1, 60)
OURS = ("crashed: TypeError", "crashed: AttributeError", "crashed: NameError")
"""Crashes by a mistake in the planting. Other crashes are effects of a bug: negative counts."""
Patch = pytest.MonkeyPatch


def finds_it(shape: str | None = None) -> str:
    """Run seeds until one fails; return its violation."""
    for seed in SEEDS:
        outcome = guarded(make_plan(seed, WEIGHTS, shape=shape))
        if outcome.violation:
            assert not outcome.violation.startswith(OURS), outcome.violation
            print(f"seed {seed}: {outcome.violation}")
            return outcome.violation
    raise AssertionError(f"not found in {len(SEEDS)} seeds")


def test_an_answer_before_earlier_commits_are_durable_is_found(monkeypatch: Patch) -> None:
    """Goal: a commit that is durable by itself (FUA) does not make earlier commits durable (R4)."""

    async def wrong(self: Log) -> None:
        while self.intake.queue:
            buffer = self.intake.queue[0]
            encoded = await self._encoded(buffer)
            fua = buffer.wanted and len(self.intake.queue) == 1
            placed = await self._append(encoded, fua=fua)
            self.intake.queue.popleft()
            self._space.written(buffer, placed.header.total_bytes)
            self._retain(placed, buffer)
            if fua:
                self._losses.clear()
                self._settle()
            elif self._retained_bytes >= FLUSH_BYTES:
                break
        if self._must_flush():
            await self._make_durable()

    monkeypatch.setattr(Log, "_drain", wrong)
    finds_it()


def test_a_slot_that_is_used_again_too_early_is_found(monkeypatch: Patch) -> None:
    """Goal: segments that the newest checkpoint on disk still names are not overwritten (R10)."""
    early: set[tuple[int, int]] = set()
    right, forget = Checkpointer._dead_segments, SegmentTable.forget

    def wrong(self: Checkpointer, frozen: Frozen) -> list[Segment]:
        dead = right(self, frozen)
        for segment in dead:
            if (id(self._table), segment.number) not in early:
                early.add((id(self._table), segment.number))
                self._table.give_back(segment.copies)
        return dead

    def forgets(self: SegmentTable, segment: Segment) -> None:
        if (id(self), segment.number) in early:
            del self._segments[segment.number]
            self.live_bytes -= segment.live_bytes
        else:
            forget(self, segment)

    monkeypatch.setattr(Checkpointer, "_dead_segments", wrong)
    monkeypatch.setattr(SegmentTable, "forget", forgets)
    finds_it()


def test_an_unconditional_move_is_found(monkeypatch: Patch) -> None:
    """Goal: a move by the cleaner never replaces a newer write (R11)."""
    right = PendingPage.steps

    def wrong(self: PendingPage) -> list[Step]:
        return [step._replace(old=None) for step in right(self)]

    monkeypatch.setattr(PendingPage, "steps", wrong)
    finds_it()


def test_an_inherited_entry_that_is_taken_off_the_counts_is_found(monkeypatch: Patch) -> None:
    """Goal: overwriting an inherited entry frees no space of the layer's parent (R6)."""
    right = Frozen.resolve

    def wrong(
        self: Frozen, layer: int, merged: Merged, pending: PendingPage, *, rootless: bool
    ) -> bool:
        entries, own = merged.entries.copy(), merged.own.copy()
        changed = right(self, layer, merged, pending, rootless=rootless)
        self.release(entries[merged.own & ~own])
        return changed

    monkeypatch.setattr(Frozen, "resolve", wrong)
    finds_it()


def test_a_checkpoint_of_what_is_in_memory_only_is_found(monkeypatch: Patch) -> None:
    """Goal: map and catalogue take only durable commits, so no checkpoint persists others (R7)."""
    retain, settle = Log._retain, Log._settle

    def early(self: Log, placed: PlacedCommit, buffer: WriteBuffer | None) -> None:
        retain(self, placed, buffer)
        self._on_durable(self._retained[-1])

    def late(self: Log) -> None:
        on_durable, self._on_durable = self._on_durable, _nothing
        settle(self)
        self._on_durable = on_durable

    monkeypatch.setattr(Log, "_retain", early)
    monkeypatch.setattr(Log, "_settle", late)
    finds_it()


def _nothing(written: Written) -> None:
    """Do nothing, because the map has the commit already."""


def test_a_map_of_what_is_in_memory_only_is_found(monkeypatch: Patch) -> None:
    """Goal: as for a checkpoint, when the map alone takes commits before they are durable."""
    retain, on_durable = Log._retain, Pool._on_durable
    early: set[int] = set()

    def retains(self: Log, placed: PlacedCommit, buffer: WriteBuffer | None) -> None:
        retain(self, placed, buffer)
        written = self._retained[-1]
        if not written.records.operations:
            pool = self._on_durable.__self__  # type: ignore[attr-defined]
            pool.blockmap.apply(written.records)
            early.add(id(written.records))

    def durable(self: Pool, written: Written) -> None:
        if id(written.records) in early:
            early.remove(id(written.records))
            placed = written.records.placed
            written = dataclasses.replace(written, records=Records(placed=placed))
        on_durable(self, written)

    monkeypatch.setattr(Log, "_retain", retains)
    monkeypatch.setattr(Pool, "_on_durable", durable)
    finds_it()


def test_a_returning_member_that_is_believed_is_found(monkeypatch: Patch) -> None:
    """Goal: a stale member gets the data that it missed before it is in sync again (R5)."""

    async def nothing(
        self: Resync, segment: Segment, source: tuple[Member, int], member: Member, slot: int
    ) -> None:
        return

    monkeypatch.setattr(Resync, "_copy", nothing)
    finds_it("two")


def test_a_stale_member_that_is_believed_alone_is_found(monkeypatch: Patch) -> None:
    """Goal: a pool does not open with members that do not record the absent ones as stale (R5)."""
    right = assemble.attach

    def wrong(
        newest: Superblock, found: assemble.Offered, without: Collection[UUID]
    ) -> list[Member | None]:
        return right(newest, found, [row.uuid for row in newest.members])

    monkeypatch.setattr(assemble, "attach", wrong)
    assert "opened without members it counts on" in finds_it("two")
