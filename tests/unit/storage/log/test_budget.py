"""Space: thin volumes, space given back, exact counts, and the full pool."""

import random

import pytest
import trio

from blockdev.device import BlockDevice
from blockdev.errors import NoSpaceError
from storage.members.segments import Role, State
from storage.pool import Pool
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read

BLOCK = 4096


async def settle(pool: Pool) -> None:
    """Write checkpoints until no more space comes back: one frees, the next reuses (R10)."""
    for _ in range(4):
        await pool.checkpoint()


async def write_until_full(device: BlockDevice, coin: random.Random) -> int:
    """Write from the start until the pool is full; returns how many bytes were taken."""
    accepted = 0
    try:
        while True:
            await device.write(accepted, coin.randbytes(65536))
            accepted += 65536
    except NoSpaceError as error:
        assert "full" in str(error)  # noqa: PT017  the loop ends only here
    return accepted


async def test_a_huge_trim_is_one_small_record() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", 1 << 50)
        device = pool.open_export("v")
        await device.write(1 << 49, b"x" * BLOCK)
        await device.trim(0, 1 << 50)
        assert bytes(await device.read(1 << 49, BLOCK)) == bytes(BLOCK)
        await device.write((1 << 49) + BLOCK, b"y" * BLOCK)
        await device.flush()
        got = bytes(await device.read(1 << 49, 2 * BLOCK))
        assert got == bytes(BLOCK) + b"y" * BLOCK
        await device.close()
        await settle(pool)
        assert 0 < pool.info().live_bytes < 2 * BLOCK
    await assert_clean(members)


async def test_deleting_everything_gives_everything_back() -> None:
    members = await new_members(count=3, copies=2)
    coin = random.Random(3)
    async with opened(members) as pool:
        await pool.management.create_volume("first", MIB)
        await settle(pool)
        await pool.management.delete_volume("first")
        await settle(pool)
        before = pool.info().free_bytes
        await pool.management.create_volume("v", 16 * MIB)
        device = pool.open_export("v")
        for i in range(400):
            at = coin.randrange(16 * MIB // BLOCK - 8) * BLOCK
            await device.write(at, coin.randbytes(BLOCK * coin.randrange(1, 8)))
            if i % 100 == 99:
                await pool.management.create_snapshot("v", f"s{i}")
        await device.close()
        await pool.management.clone("v", "s199", "c")
        await pool.management.delete_volume("c")
        await pool.management.delete_volume("v", snapshots=True)
        await settle(pool)
        info = pool.info()
        assert info.live_bytes == 0
        assert info.free_bytes >= before - MIB  # the open log segment may have moved on
    await assert_clean(members)


async def test_zeroes_and_repetition_take_little_space() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", 32 * MIB)
        device = pool.open_export("v")
        await device.write(0, bytes(8 * MIB))
        await device.write(8 * MIB, b"abcd" * (2 * MIB))
        await device.flush()
        await settle(pool)
        assert pool.info().live_bytes < MIB // 2
        assert await read(pool, "v", 0, 16 * MIB) == bytes(8 * MIB) + b"abcd" * (2 * MIB)
        await device.close()


async def test_a_full_pool_refuses_writes_harms_nothing_and_recovers() -> None:
    """Rule R17: delete and trim work at 100 %, and writes go on once there is room."""
    members = await new_members(mib=24)
    coin = random.Random(4)
    async with opened(members) as pool:
        await pool.management.create_volume("keep", 4 * MIB)
        await pool.management.create_volume("fill", 1 << 30)
        keep, fill = pool.open_export("keep"), pool.open_export("fill")
        kept = coin.randbytes(MIB)
        await keep.write(0, kept)
        accepted = await write_until_full(fill, coin)
        await fill.flush()
        assert accepted > 10 * MIB
        assert bytes(await keep.read(0, MIB)) == kept
        with pytest.raises(NoSpaceError):
            await keep.write(MIB, b"x" * 65536)
        await fill.trim(0, accepted)
        await keep.write(MIB, kept)
        await keep.flush()
        assert bytes(await keep.read(MIB, MIB)) == kept
        await fill.close()
        await keep.close()
        await pool.management.delete_volume("fill")
    await assert_clean(members)
    async with opened(members) as pool:
        assert await read(pool, "keep", 0, 2 * MIB) == kept + kept


async def test_filling_and_trimming_again_and_again_loses_nothing() -> None:
    members = await new_members(mib=24)
    coin = random.Random(5)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 1 << 30)
        device = pool.open_export("v")
        for _ in range(6):
            assert await write_until_full(device, coin) > 8 * MIB
            await device.trim(0, 1 << 30)
            assert bytes(await device.read(0, MIB)) == bytes(MIB)
        await device.close()
    await assert_clean(members)


async def test_segments_of_the_log_are_filled_to_their_end() -> None:
    """Goal: the bytes left empty at the ends of segments are bounded, also while moves are logged
    in between. They cost as much as a fuller pool does: the cleaner moves more."""
    members = await new_members()
    coin = random.Random(1)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 40 * MIB)
        device = pool.open_export("v")
        for block in coin.sample(range(40 * MIB // BLOCK), 5 * MIB // BLOCK):
            await device.write(block * BLOCK, coin.randbytes(BLOCK))
        await pool.flush()
        for block in coin.sample(range(40 * MIB // BLOCK), 15 * MIB // BLOCK):
            await device.write(block * BLOCK, coin.randbytes(BLOCK))
            if block % 400 == 0:
                await pool.cleaner.round(1)
        await pool.flush()
        await device.close()
        log = [s for s in pool.table.all() if s.role is Role.LOG and s.state is State.SEALED]
        used = sum(segment.used_bytes for segment in log)
        assert len(log) > 12
        assert used > 0.98 * len(log) * pool.table.segment_bytes
    await assert_clean(members)


async def test_writes_that_are_not_durable_yet_count_as_used() -> None:
    """Goal: the reserve is never written into, however many writes are not durable yet."""
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        device = pool.open_export("v")
        coin = random.Random(2)
        before = pool.info().free_bytes
        for i in range(40 * MIB // BLOCK):
            await device.write(i * BLOCK, coin.randbytes(BLOCK))
            if i % 64 == 0:
                await trio.lowlevel.checkpoint()
            assert pool.info().free_bytes <= before - i * BLOCK
        await device.close()
    await assert_clean(members)
