"""A log that cannot be read where it may end: nothing that was acknowledged is forgotten."""

from collections.abc import Callable

import pytest
from typing_extensions import Buffer

from blockdev.errors import ClosedError, DeviceError, NoSpaceError, TakenError
from blockdev.simulated import SimulatedDisk, SimulatedWorld
from storage.member import closing_offset
from storage.superblock import DATA_START_BYTES
from tests.crash.harness import MIB, ONE, TWO_OF_THREE, Shape, live, new_world, opened

BLOCK = bytes(range(256)) * 16

Unreadable = Callable[[int, int], bool]
"""Of an offset and a length."""


def world_with_a_flushed_block(shape: Shape) -> SimulatedWorld:
    world = new_world(shape, 31)

    async def body() -> None:
        async with opened(world, shape) as pool:
            await pool.create_volume("v", MIB)
            device = pool.open_export("v")
            await device.write(0, BLOCK)
            await device.flush()
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


def test_a_log_of_which_nothing_can_be_read_does_not_end_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: the pool refuses, and has everything once the disk can be read again."""
    world = world_with_a_flushed_block(ONE)
    with monkeypatch.context() as patch:
        make_unreadable(world.disks[0], patch, slots)
        with pytest.raises(DeviceError, match="end of the log cannot be read"):
            holds_the_block(world, ONE)
    holds_the_block(world.reboot(), ONE)


@pytest.mark.parametrize("error", [DeviceError, ClosedError, NoSpaceError])
def test_a_log_of_which_one_copy_can_be_read_is_known(
    monkeypatch: pytest.MonkeyPatch, error: type[DeviceError]
) -> None:
    """Goal: one disk of three that cannot be read keeps no pool of two copies from opening,
    whatever it says.
    """
    for index in range(3):
        world = world_with_a_flushed_block(TWO_OF_THREE)
        with monkeypatch.context() as patch:
            make_unreadable(world.disks[index], patch, slots, error)
            holds_the_block(world, TWO_OF_THREE)


def test_a_disk_that_another_daemon_took_stops_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: that is no word about the log: whoever took the disk goes on with it (R16)."""
    world = world_with_a_flushed_block(TWO_OF_THREE)
    for disk in world.disks:
        make_unreadable(disk, monkeypatch, slots, TakenError)
    with pytest.raises(TakenError):
        holds_the_block(world, TWO_OF_THREE)


def test_what_cannot_be_read_far_behind_the_log_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: a bad place that reading ahead meets is none of the log's business."""
    world = world_with_a_flushed_block(ONE)
    bad = DATA_START_BYTES + 100 * 1024  # the log has some 20 KiB
    make_unreadable(
        world.disks[0], monkeypatch, lambda offset, length: offset <= bad < offset + length
    )
    holds_the_block(world, ONE)
