"""Growth of a pool: new members, larger members, and devices that are refused."""

import random

import pytest

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError, NoSpaceError
from blockdev.memory import MemoryDevice
from storage.errors import (
    ExistsError,
    ForeignMemberError,
    InvalidArgumentError,
    MemberTooSmallError,
    NotFoundError,
    PoolError,
)
from storage.info import MemberState
from storage.pool import MemberDevice, Pool, create_pool, open_pool
from tests.unit.storage.checkpoint.test_merge import settle
from tests.unit.storage.log.test_budget import write_until_full
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read, write
from tests.unit.storage.volumes.test_space import assert_adds_up


class Elastic(MemoryDevice):
    """A device that becomes larger, as a file may."""

    def __init__(self, mib: int, mib_max: int) -> None:
        super().__init__(mib_max * MIB)
        self.size_bytes = self.real_bytes = mib * MIB

    async def measure(self) -> int:
        self.size_bytes = max(self.size_bytes, self.real_bytes)
        return self.size_bytes


def a_member(device: BlockDevice, name: str = "new", host: str = "host9") -> MemberDevice:
    return MemberDevice(device, name, host)


async def test_a_full_pool_takes_writes_again_once_a_member_is_added() -> None:
    members = await new_members(mib=24)
    coin = random.Random(1)
    more = a_member(MemoryDevice(32 * MIB))
    async with opened(members) as pool:
        await pool.management.create_volume("v", 1 << 30)
        device = pool.open_export("v")
        first = await write_until_full(device, coin)
        before = pool.space_info()
        uuid = await pool.growth.add(more)
        after = pool.space_info()
        assert after.total_bytes == before.total_bytes + 30 * MIB
        assert pool.info().members[1].uuid == uuid
        second = await write_until_full(device, coin)
        assert second > first + 20 * MIB
        data = coin.randbytes(MIB)
        await device.trim(0, 8 * MIB)
        await device.write(MIB, data)
        await device.close()
        await settle(pool)
        assert_adds_up(pool)
    await assert_clean([*members, more])
    async with opened([more, *members]) as pool:
        assert await read(pool, "v", MIB, MIB) == data
    with pytest.raises(PoolError, match="missing"):
        async with opened(members):
            pass


async def test_segments_that_lack_copies_get_them_on_a_new_member() -> None:
    members = await new_members(count=2, copies=2)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 8 * MIB)
        lost = pool.info().members[1].uuid
    more = a_member(MemoryDevice(64 * MIB))
    async with open_pool(members[:1], without=[lost]) as pool:
        await write(pool, "v", 0, random.Random(1).randbytes(4 * MIB))
        await settle(pool)
        await pool.growth.add(more)
        await write(pool, "v", 4 * MIB, random.Random(2).randbytes(4 * MIB))
        await pool.flush()
        open_segment = pool.table[pool.log.durable.segment]
        assert {copy.member for copy in open_segment.copies} <= {0, 2}
        assert pool.info().members[2].slots_free < 62
    async with opened([*members, more]) as pool:
        assert [m.state for m in pool.info().members] == [MemberState.IN_SYNC] * 3
        assert await read(pool, "v", 0, 4 * MIB) == random.Random(1).randbytes(4 * MIB)


async def test_devices_that_cannot_be_added_are_refused() -> None:
    members = await new_members(mib=64)
    other = await new_members(mib=64)
    async with opened(members) as pool:
        add = pool.growth.add
        with pytest.raises(ExistsError, match="already"):
            await add(members[0])
        with pytest.raises(ForeignMemberError, match="member of pool"):
            await add(other[0])
        with pytest.raises(MemberTooSmallError, match="at least"):
            await add(a_member(MemoryDevice(4 * MIB)))
        with pytest.raises(InvalidArgumentError, match="physical"):
            await add(a_member(MemoryDevice(64 * MIB, physical_bytes=65536)))
        with pytest.raises(InvalidArgumentError, match="host label"):
            await add(a_member(MemoryDevice(64 * MIB), host=""))
        assert len(pool.info().members) == 1
    await assert_clean(members)
    await assert_clean(other)


async def test_a_device_that_fails_while_it_is_added_is_no_member() -> None:
    """Goal: the superblocks of the others no longer name it, and the pool goes on."""

    class Fails(MemoryDevice):
        flushes_left = 0

        async def flush(self) -> None:
            self.flushes_left -= 1
            if self.flushes_left < 0:
                raise DeviceError("broken")

    members = await new_members(mib=64)
    for flushes in range(3):
        async with opened(members) as pool:
            device = Fails(64 * MIB)
            device.flushes_left = flushes
            with pytest.raises(DeviceError, match="broken"):
                await pool.growth.add(a_member(device))
            assert len(pool.info().members) == len(members)
            if not pool.management.volumes():
                await pool.management.create_volume("v", MIB)
            await write(pool, "v", 0, b"x" * MIB)
            await pool.checkpoint()
            good = a_member(MemoryDevice(64 * MIB))
            assert (await pool.growth.add(good)) == pool.info().members[-1].uuid
        members.append(good)
        await assert_clean(members)


async def grown(pool: Pool, index: int) -> int:
    return await pool.growth.grow(pool.info().members[index].uuid)


async def test_a_larger_member_is_used_on_request() -> None:
    device = Elastic(24, 64)
    members = [a_member(device)]
    await create_pool(members, copies=1, segment_bytes=MIB)
    coin = random.Random(3)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 1 << 30)
        volume = pool.open_export("v")
        first = await write_until_full(volume, coin)
        with pytest.raises(InvalidArgumentError, match="larger"):
            await grown(pool, 0)
        device.real_bytes = 24 * MIB + 5_000
        with pytest.raises(InvalidArgumentError, match="larger"):
            await grown(pool, 0)
        device.real_bytes = 64 * MIB
        with pytest.raises(NoSpaceError):
            await volume.write(first, coin.randbytes(MIB))
        assert await grown(pool, 0) == 64 * MIB
        assert await write_until_full(volume, coin) > first + 30 * MIB
        await volume.close()
        await settle(pool)
        assert_adds_up(pool)
        assert pool.info().members[0].slots == 62
    await assert_clean(members)
    async with opened(members) as pool:
        assert pool.info().members[0].size_bytes == 64 * MIB
        with pytest.raises(NotFoundError):
            await pool.growth.grow(pool.info().uuid)


async def test_the_reserve_grows_with_the_pool() -> None:
    members = await new_members(mib=64)
    async with opened(members) as pool:
        before = pool.space.reserve_segments, pool.info().size_bytes
        await pool.growth.add(a_member(MemoryDevice(1024 * MIB)))
        assert pool.space.reserve_segments > 4 * before[0]
        assert pool.info().size_bytes > 10 * before[1]
