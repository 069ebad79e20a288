"""A log that cannot be read where it may end: no acknowledged write is dropped."""

import itertools
from collections.abc import Callable, Collection
from uuid import UUID

import pytest
from typing_extensions import Buffer

from blockdev.errors import ClosedError, DeviceError, NoSpaceError, TakenError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.errors import MissingMemberError
from storage.format.superblock import DATA_START_BYTES
from storage.members.member import closing_offset, read_superblock
from storage.pool import open_pool
from tests.crash.harness import (
    MIB,
    ONE,
    SETTINGS,
    TWO_OF_THREE,
    Shape,
    live,
    members,
    new_world,
    opened,
)
from tests.sim.deterministic import environment

BLOCK = bytes(range(256)) * 16

Unreadable = Callable[[int, int], bool]
"""Whether a read of an offset and a length, both in bytes, fails."""


def world_with_a_flushed_block(
    shape: Shape, where: list[tuple[int, int]] | None = None
) -> SimulatedWorld:
    """Return a pool that lost power after one flushed block. `where` gets the range of the block's
    commit, (start, end) in the slot of the log."""
    world = new_world(shape, 31)

    async def body() -> None:
        async with opened(world, shape) as pool:
            await pool.management.create_volume("v", MIB)
            device = pool.open_export("v")
            before = pool.log.durable.offset
            await device.write(0, BLOCK)
            await device.flush()
            if where is not None:
                where.append((before, pool.log.durable.offset))
            world.cut_power()

    assert live(world, body)
    return world.reboot()


def make_unreadable(
    disk: SimulatedDisk,
    monkeypatch: pytest.MonkeyPatch,
    is_bad: Unreadable,
    error: type[DeviceError] = DeviceError,
) -> None:
    real = disk.read

    async def read(offset: int, length: int) -> Buffer:
        if offset < closing_offset(disk.size_bytes) and is_bad(offset, length):
            raise error("simulated: unreadable")
        return await real(offset, length)

    monkeypatch.setattr(disk, "read", read)
    monkeypatch.setattr(disk, "try_read", lambda offset, length: None)


def holds_the_block(world: SimulatedWorld, shape: Shape) -> None:
    async def body() -> None:
        async with opened(world, shape, life=1) as pool:
            assert bytes(await pool.open_export("v").read(0, len(BLOCK))) == BLOCK
            world.cut_power()

    assert live(world, body)


def slots(offset: int, length: int) -> bool:
    return offset >= DATA_START_BYTES


def test_a_pool_whose_end_of_the_log_cannot_be_read_refuses_to_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: the pool refuses to open, and has all data once the disk can be read again."""
    world = world_with_a_flushed_block(ONE)
    with monkeypatch.context() as patch:
        make_unreadable(world.disks[0], patch, slots)
        with pytest.raises(DeviceError, match="end of the log cannot be read"):
            holds_the_block(world, ONE)
    holds_the_block(world.reboot(), ONE)


@pytest.mark.parametrize("error", [DeviceError, ClosedError, NoSpaceError])
def test_one_readable_copy_of_the_log_is_enough(
    monkeypatch: pytest.MonkeyPatch, error: type[DeviceError]
) -> None:
    """Goal: a pool of two copies opens although one disk of three cannot be read, whichever error
    that disk gives.
    """
    for index in range(3):
        world = world_with_a_flushed_block(TWO_OF_THREE)
        with monkeypatch.context() as patch:
            make_unreadable(world.disks[index], patch, slots, error)
            holds_the_block(world, TWO_OF_THREE)


def test_a_disk_that_another_daemon_took_stops_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a refusal says nothing about the log, which the other daemon goes on writing (R16)."""
    world = world_with_a_flushed_block(TWO_OF_THREE)
    for disk in world.disks:
        make_unreadable(disk, monkeypatch, slots, TakenError)
    with pytest.raises(TakenError):
        holds_the_block(world, TWO_OF_THREE)


def test_an_unreadable_place_far_behind_the_log_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: a pool opens although reading ahead meets a bad place behind the end of the log."""
    world = world_with_a_flushed_block(ONE)
    bad = DATA_START_BYTES + 100 * 1024  # the log has some 20 KiB
    make_unreadable(
        world.disks[0], monkeypatch, lambda offset, length: offset <= bad < offset + length
    )
    holds_the_block(world, ONE)


def error_without(
    world: SimulatedWorld, gone: int | None, without: Collection[UUID] = ()
) -> DeviceError | None:
    """Open the pool without disk `gone`, read the block, and make a checkpoint that names it;
    return the error that stopped this, or None."""

    async def body() -> None:
        some = [each for i, each in enumerate(members(world, TWO_OF_THREE)) if i != gone]
        env = environment((world.seed, 2))
        async with open_pool(some, settings=SETTINGS, env=env, without=without) as pool:
            assert bytes(await pool.open_export("v").read(0, len(BLOCK))) == BLOCK
            await pool.checkpoint()
            world.cut_power()

    try:
        live(world, body)
    except DeviceError as error:
        return error
    return None


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize(("gone", "failing"), [*itertools.permutations(range(3), 2)])
def test_the_end_of_the_log_on_a_disk_that_fails_while_the_other_is_gone(
    gone: int, failing: int, times: int | None
) -> None:
    """Goal: an opening while the disk fails loses nothing: later openings with all disks have the
    block, and openings with two disks have it or refuse.

    Method: spoil the last commit on disk `gone`, as if the power had gone while it was written.
    The pool is forced open without that disk, while writes to disk `failing` fail. Then it is
    opened with all disks, and with any two.
    """
    where: list[tuple[int, int]] = []
    world = world_with_a_flushed_block(TWO_OF_THREE, where)
    start, end = where[0]
    world.disks[gone].corrupt(DATA_START_BYTES + start, end - start)
    uuids: list[UUID] = []

    async def read_uuids() -> None:
        for disk in world.disks:
            found = await read_superblock(disk)
            assert found is not None
            uuids.append(found.me.uuid)

    live(world, read_uuids)
    world.disks[failing].fail_write(times=times)
    error = error_without(world, gone, [uuids[gone]])
    assert error is None or (times is None and "cannot be made durable" in str(error))
    assert error_without(world.reboot(), None) is None
    for lacking in range(3):
        error = error_without(world.reboot(), lacking)
        is_missed = isinstance(error, MissingMemberError) and lacking != gone
        assert error is None or is_missed or "attach missing members" in str(error)
