"""Members whose devices lose unflushed writes: `losses` tells the tasks that wrote them."""

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
async def test_a_read_that_reports_a_lost_cache_counts_it(
    member: Member, disk: SimulatedDisk, how: str
) -> None:
    """Goal: no loss is missed: the device reports it once, to the next operation (R4)."""
    disk.try_reads = True

    async def at_once(offset: int, length: int) -> memoryview | None:
        return member.try_read(offset, length)

    disk.lose_cache()
    reads = {"read": member.read, "read_medium": member.read_medium, "try_read": at_once}
    with pytest.raises(CacheLostError):
        await reads[how](1, 600)
    assert member.losses == 1
    assert len(memoryview(await member.read(1, 600))) == 600


async def test_a_superblock_write_fails_if_another_flush_failed_meanwhile(
    member: Member, disk: SimulatedDisk
) -> None:
    """Goal: a superblock that may be lost does not count as written. Another task's flush that
    fails between the write and its flush may lose it; the next flush succeeds all the same (R4)."""
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
