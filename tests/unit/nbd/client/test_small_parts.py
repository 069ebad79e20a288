"""The ledger of unflushed writes, the window of requests, and extents."""

import random

import pytest
import trio
import trio.testing

from blockdev.device import EXTENTS_MAX, Extent
from blockdev.errors import CacheLostError
from nbd.client.extents import to_extents
from nbd.client.ledger import RANGES_MAX, Ledger
from nbd.client.window import Window

# The ledger


def test_flushed_writes_are_not_lost() -> None:
    ledger = Ledger()
    ledger.answered(0, 10)
    ledger.flushed(ledger.mark())
    ledger.lose("gone")
    ledger.check()
    ledger.check_read(0, 10)
    assert ledger.losses == 0


def test_a_flush_covers_only_what_was_answered_before_it() -> None:
    ledger = Ledger()
    ledger.answered(0, 10)
    mark = ledger.mark()
    ledger.answered(20, 10)
    ledger.flushed(mark)
    ledger.lose("gone")
    with pytest.raises(CacheLostError, match="gone"):
        ledger.check()
    ledger.check_read(0, 20)
    ledger.check_read(30, 10)
    for offset, length in ((20, 1), (29, 1), (0, 100), (19, 2), (25, 1)):
        with pytest.raises(CacheLostError):
            ledger.check_read(offset, length)


def test_losses_add_up_until_they_are_acknowledged() -> None:
    ledger = Ledger()
    ledger.answered(0, 10)
    ledger.lose("first")
    ledger.answered(50, 10)
    ledger.lose("second")
    ledger.lose("third, of nothing")
    assert ledger.losses == 2
    assert ledger.lost == "second"
    for offset in (5, 55):
        with pytest.raises(CacheLostError):
            ledger.check_read(offset, 1)
    ledger.acknowledge()
    ledger.check()
    ledger.check_read(0, 100)
    ledger.lose("fourth, of nothing")
    ledger.check()


def test_writes_after_a_loss_are_lost_by_the_next_even_if_acknowledged() -> None:
    ledger = Ledger()
    ledger.answered(0, 10)
    ledger.lose("first")
    ledger.answered(50, 10)
    ledger.acknowledge()
    ledger.lose("second")
    with pytest.raises(CacheLostError):
        ledger.check()


def test_many_ranges_stay_bounded_and_none_is_forgotten() -> None:
    ledger = Ledger()
    coin = random.Random(1)
    written = [(coin.randrange(1 << 40), coin.randrange(1, 1 << 16)) for _ in range(20000)]
    for offset, length in written:
        ledger.answered(offset, length)
        assert len(ledger._unflushed) <= RANGES_MAX
    ledger.lose("gone")
    for offset, length in written:
        with pytest.raises(CacheLostError):
            ledger.check_read(offset + length - 1, 1)
        with pytest.raises(CacheLostError):
            ledger.check_read(offset, 1)


def test_merged_ranges_are_kept_by_a_flush_in_between() -> None:
    ledger = Ledger()
    ledger.answered(0, 1)
    mark = ledger.mark()
    for number in range(RANGES_MAX):
        ledger.answered(number * 10, 1)
    ledger.flushed(mark)
    ledger.lose("gone")
    with pytest.raises(CacheLostError):
        ledger.check_read(0, 1)


# The window


async def test_the_window_is_handed_out_in_order() -> None:
    window = Window(2, 100)
    got: list[str] = []

    async def want(name: str, size: int) -> None:
        await window.acquire(size)
        got.append(name)

    await want("a", 90)
    async with trio.open_nursery() as nursery:
        for name, size in (("b", 20), ("c", 1), ("d", 1)):
            nursery.start_soon(want, name, size)
            await trio.testing.wait_all_tasks_blocked()
        assert got == ["a"]
        window.release(90)
        await trio.testing.wait_all_tasks_blocked()
        assert set(got) == {"a", "b", "c"}  # both are admitted at once, in any order
        window.release(20)
        await trio.testing.wait_all_tasks_blocked()
        assert got[3] == "d"


async def test_a_request_larger_than_the_window_goes_alone() -> None:
    window = Window(2, 100)
    await window.acquire(1000)
    with trio.move_on_after(0.01) as scope:
        await window.acquire(1)
    assert scope.cancelled_caught
    window.release(1000)
    await window.acquire(1)


async def test_a_cancelled_waiter_no_longer_delays_smaller_requests() -> None:
    window = Window(10, 100)
    await window.acquire(50)
    done = trio.Event()

    async def small() -> None:
        await window.acquire(10)
        done.set()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as large:
                large.start_soon(window.acquire, 90)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(small)
                await trio.testing.wait_all_tasks_blocked()
                assert not done.is_set()
                scope.cancel()
        await done.wait()


async def test_a_wider_window_lets_more_in() -> None:
    window = Window(1, 100)
    await window.acquire(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(window.acquire, 1)
        await trio.testing.wait_all_tasks_blocked()
        window.widen(2)


# Extents


DATA, HOLE, ZERO, BOTH = 0, 1, 2, 3


def plain(extents: list[Extent]) -> list[tuple[int, int]]:
    return [(one.length_bytes, one.hole * 1 + one.zero * 2) for one in extents]


@pytest.mark.parametrize(
    ("runs", "length", "block", "expected"),
    [
        ([(10, DATA)], 10, 1, [(10, DATA)]),
        ([(10, DATA), (5, DATA), (5, BOTH)], 20, 1, [(15, DATA), (5, BOTH)]),
        ([(10, DATA), (1 << 40, HOLE)], 20, 1, [(10, DATA), (10, HOLE)]),
        ([(10, DATA)], 20, 1, [(10, DATA)]),
        ([(10, 4 | 8 | BOTH)], 10, 1, [(10, BOTH)]),
        ([(512, BOTH), (512, DATA)], 1024, 512, [(512, BOTH), (512, DATA)]),
        # Blocks that are partly data are data.
        ([(700, BOTH), (324, DATA)], 1024, 512, [(512, BOTH), (512, DATA)]),
        ([(300, DATA), (724, BOTH)], 1024, 512, [(512, DATA), (512, BOTH)]),
        ([(100, BOTH), (100, HOLE), (824, BOTH)], 1024, 512, [(512, HOLE), (512, BOTH)]),
        ([(600, BOTH), (100, DATA), (324, BOTH)], 1024, 512, [(512, BOTH), (512, DATA)]),
        ([(600, BOTH), (10, BOTH)], 1024, 512, [(512, BOTH)]),
        ([(100, BOTH)], 1024, 512, [(512, DATA)]),
    ],
)
def test_runs_become_merged_extents_in_whole_blocks(
    runs: list[tuple[int, int]], length: int, block: int, expected: list[tuple[int, int]]
) -> None:
    assert plain(to_extents(runs, length, block)) == expected


def test_extents_are_bounded() -> None:
    runs = [(1, number % 2) for number in range(EXTENTS_MAX + 10)]
    assert len(to_extents(runs, 1 << 20, 1)) == EXTENTS_MAX


def test_extents_in_blocks_never_claim_zero_for_data() -> None:
    coin = random.Random(3)
    for _ in range(300):
        runs = [(coin.randrange(1, 1500), coin.randrange(4)) for _ in range(10)]
        states = [state for length, state in runs for _ in range(length)][: 512 * 4]
        states = states[: len(states) // 512 * 512]
        at = 0
        for length, state in plain(to_extents(runs, 512 * 4, 512)):
            assert length % 512 == 0
            for known in states[at : at + length]:
                assert state & ~known == 0
            at += length
