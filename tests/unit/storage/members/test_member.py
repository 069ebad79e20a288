"""A member whose device says that it lost what was not flushed: whoever wrote has to hear of it."""

from uuid import UUID

import pytest

from blockdev.errors import CacheLostError, DeviceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.format.superblock import MemberRow, RootPointer, Superblock
from storage.members.member import Member, MemberDevice

MIB = 1 << 20


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(SimulatedWorld(1, count_reads=False), 32 * MIB)


@pytest.fixture
def member(disk: SimulatedDisk) -> Member:
    row = MemberRow(UUID(int=1), "a", disk.size_bytes, 30)
    return Member(0, MemberDevice(disk, "disk", "a"), row, MIB)


@pytest.mark.parametrize("how", ["read", "read_medium", "try_read"])
async def test_a_read_that_hears_of_a_loss_tells_those_who_wrote(
    member: Member, disk: SimulatedDisk, how: str
) -> None:
    """Goal: the device says it once, and to whoever asks next (R4)."""
    disk.try_reads = True

    async def at_once(offset: int, length: int) -> memoryview | None:
        return member.try_read(offset, length)

    disk.lose_cache()
    reads = {"read": member.read, "read_medium": member.read_medium, "try_read": at_once}
    with pytest.raises(CacheLostError):
        await reads[how](1, 600)
    assert member.losses == 1
    assert len(memoryview(await member.read(1, 600))) == 600


async def test_a_superblock_is_not_written_if_something_was_lost_meanwhile(
    member: Member, disk: SimulatedDisk
) -> None:
    """Goal: a flush of somebody else that fails between a superblock and its own flush may take the
    superblock along; the next flush succeeds and saves nothing (R4)."""
    sb = Superblock(
        UUID(int=9), 0, UUID(int=2), 1, 1, 0, MIB, 4096, 1, False, RootPointer(), (), (member.row,)
    )
    flush = disk.flush

    async def flush_after_another_failed() -> None:
        disk.fail_flush()
        with pytest.raises(DeviceError):
            await flush()
        member.losses += 1
        await flush()

    disk.flush = flush_after_another_failed  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="an earlier flush failed"):
        await member.write_superblock(sb)
    disk.flush = flush  # type: ignore[method-assign]
    await member.write_superblock(sb)
