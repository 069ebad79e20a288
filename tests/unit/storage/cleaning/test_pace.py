"""While space is short, writers keep to the pace at which the cleaner gains it."""

import pytest
import trio
import trio.testing

from blockdev.errors import DeviceError
from storage.cleaning.shared_run import SharedRun
from storage.format.entry import BLOCK_BYTES
from storage.log.budget import CREDIT_SEGMENTS, SpaceBudget
from storage.log.buffer import WriteBuffer
from storage.log.intake import Intake
from storage.pool import Pool
from tests.unit.storage.pools import MIB, new_members, opened


async def never() -> None:
    raise AssertionError("nobody had to make room")


def short_space(pool: Pool) -> SpaceBudget:
    """Make a second budget for the table of a pool, in which space is short."""
    space = SpaceBudget(pool.table, 64 * MIB, never)
    space.is_short = lambda: True
    return space


def fill(space: SpaceBudget) -> list[WriteBuffer]:
    """Open buffers until no more may be opened."""
    filled: list[WriteBuffer] = []
    while blocks := space.grant(0, unbounded=False, queue=filled):
        buffer = WriteBuffer(blocks, 0.0)
        buffer.operations.append(b"not empty")
        filled.append(buffer)
        space.held(buffer)
    return filled


async def test_writers_take_no_more_space_than_the_cleaner_gains() -> None:
    """Goal: buffers in memory count as taken. Else writers could fill all of the memory before the
    first buffer was written, and would take all free space whenever some came back.
    """
    async with opened(await new_members()) as pool:
        space = short_space(pool)
        one = space.buffer_blocks_max * BLOCK_BYTES
        taken = fill(space)
        assert 0 < sum(b.capacity for b in taken) * BLOCK_BYTES <= CREDIT_SEGMENTS * MIB + one
        for buffer in taken:
            space.written(buffer, buffer.claim_bytes)
            space.released(buffer)
        assert fill(space) == []
        space.gained(2 * MIB)
        assert 0 < sum(b.capacity for b in fill(space)) * BLOCK_BYTES <= 2 * MIB + one


async def test_a_loss_of_the_cleaner_does_not_stop_writers_for_long() -> None:
    async with opened(await new_members()) as pool:
        space = short_space(pool)
        space.gained(-100 * MIB)
        assert fill(space) == []
        space.gained(2 * MIB)
        assert fill(space) != []


async def test_a_waiting_writer_continues_as_soon_as_there_is_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: a writer does not run a checkpoint of its own, and wait for its end, if the checkpoint
    under way frees enough space.
    """
    async with opened(await new_members()) as pool:
        await pool.management.create_volume("v", MIB)
        volume = pool.open_export("v")
        space = SpaceBudget(pool.table, 64 * MIB, never)
        space.is_reclaiming = lambda: True
        intake = Intake(space, lambda: 0, lambda buffer: None)
        with monkeypatch.context() as patch:
            patch.setattr(pool.table, "free_segments", lambda: 0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(intake.put, volume._state, 0, 1, bytes(BLOCK_BYTES))
                await trio.testing.wait_all_tasks_blocked()
                intake.pulse()
                await trio.testing.wait_all_tasks_blocked()
                assert intake.open is None
                patch.undo()
                intake.pulse()
        assert intake.open is not None
        intake.open.layers.clear()
        volume._state.layer.overlays.clear()
        await volume.close()


class Job:
    """A job that ends when `done` is set."""

    def __init__(self) -> None:
        self.runs = 0
        self.done = trio.Event()
        self.failing = False

    async def __call__(self) -> None:
        self.runs += 1
        await self.done.wait()
        if self.failing:
            raise DeviceError("it failed")


async def test_all_calls_made_during_a_run_share_the_next_run() -> None:
    """Goal: no call returns because of a run that began before the call."""
    job = Job()
    shared = SharedRun(job)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(shared)
        await trio.testing.wait_all_tasks_blocked()
        job.done.set()
    assert job.runs == 2
    await shared()
    assert job.runs == 3


async def test_a_failed_run_counts_for_no_other_call() -> None:
    job = Job()
    job.failing = True
    job.done.set()
    shared = SharedRun(job)
    errors = []

    async def call() -> None:
        try:
            await shared()
        except DeviceError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call)
    assert (job.runs, len(errors)) == (3, 3)
