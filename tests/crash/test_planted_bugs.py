"""Planted bugs: the power cut test must fail for each.

Method of all: replace one function of the engine by a version with a bug that storage engines
have had, and run the same sweep as the real test until it fails.
"""

from collections.abc import Iterable

import pytest

from storage.format.checkpoint_root import LogPosition
from storage.log.committer import Log
from storage.members.member import Member
from storage.members.segment_io import Failure, SegmentIO
from storage.members.segments import State
from storage.recovery import opening
from storage.recovery.opening import Opened
from storage.recovery.replay import Found, Replay
from tests.crash.harness import ONE, TWO_OF_THREE, Shape
from tests.crash.sweep import Sweep

SEEDS = range(1, 9)


def run_sweeps(shape: Shape) -> None:
    """Run the sweep of the real test over some seeds."""
    for seed in SEEDS:
        Sweep(shape, seed).run()


@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
def test_a_skipped_flush_is_found(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: every fourth flush is skipped and acknowledged all the same."""
    calls = 0
    honest = SegmentIO.flush

    async def skips(self: SegmentIO, members: Iterable[Member]) -> list[Failure]:
        nonlocal calls
        calls += 1
        return [] if calls % 4 == 0 else await honest(self, members)

    monkeypatch.setattr(SegmentIO, "flush", skips)
    with pytest.raises(AssertionError):
        run_sweeps(shape)


@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
def test_a_reused_tail_is_found(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the log goes on right behind a recovered tail, and copies stay unequal (R2, R3)."""

    async def goes_on(opened: Opened, *, was_clean: bool) -> None:
        segment = opened.table.get(opened.position.announced or opened.position.segment)
        if segment is None:
            await begin(opened, was_clean=was_clean)
            return
        segment.state = State.OPEN

    async def believes(self: Replay, found: Found) -> bool:
        return True

    begin = opening.begin
    monkeypatch.setattr(opening, "begin", goes_on)
    monkeypatch.setattr(Replay, "_level", believes)
    with pytest.raises(AssertionError):
        run_sweeps(shape)


def test_an_unchecked_payload_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: replay believes a commit whose header and table are whole without checking its data."""
    monkeypatch.setattr(Replay, "_is_whole", lambda self, data, found: True)
    with pytest.raises(AssertionError):
        run_sweeps(ONE)


def test_copies_left_unequal_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a commit with one whole copy counts, but the other copy stays torn (R3)."""
    honest = Member.overwrite

    async def forgets(self: Member, offset: int, data: bytes) -> None:
        if len(data) < 0:
            await honest(self, offset, data)

    monkeypatch.setattr(Member, "overwrite", forgets)
    with pytest.raises(AssertionError):
        run_sweeps(TWO_OF_THREE)


def test_an_early_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: commits count as durable when they are written but not flushed yet (R4)."""

    async def settles(self: Log) -> None:
        self._losses.clear()
        self._settle()

    monkeypatch.setattr(Log, "_make_durable", settles)
    with pytest.raises(AssertionError):
        run_sweeps(ONE)


def test_a_forgotten_jump_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: recovery goes on in a fresh segment that no superblock names (R2)."""

    def stays(self: Replay, at: LogPosition) -> LogPosition:
        return at

    monkeypatch.setattr(Replay, "_after_jump", stays)
    with pytest.raises(AssertionError):
        run_sweeps(ONE)
