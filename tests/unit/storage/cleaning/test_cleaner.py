"""The cleaner keeps hot blocks apart from cold ones, and works when segments are few."""

import random

import pytest

from storage.log.budget import SpaceBudget
from storage.members.segments import Role
from storage.pool import Pool, PoolSettings
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read, write

BLOCK = 4096
HOT_BYTES = 2 * MIB


async def half_hot(pool: Pool) -> bytearray:
    """Make a volume whose first part is written often, so that every segment is partly dead."""
    coin = random.Random(5)
    await pool.management.create_volume("v", 16 * MIB)
    image = bytearray()
    for _ in range(16):
        image += coin.randbytes(MIB)
        await write(pool, "v", len(image) - MIB, bytes(image[-MIB:]))
    for _ in range(3):
        for offset in range(0, 16 * MIB, BLOCK):
            if offset < HOT_BYTES or coin.random() < 0.1:
                image[offset : offset + BLOCK] = coin.randbytes(BLOCK)
                await write(pool, "v", offset, bytes(image[offset : offset + BLOCK]))
        await pool.flush()
    await pool.checkpoint()
    return image


async def live_bytes(pool: Pool, role: Role) -> int:
    await pool.checkpoint()
    return sum(segment.live_bytes for segment in pool.table.all() if segment.role is role)


async def test_hot_and_cold_blocks_go_to_different_segments() -> None:
    members = await new_members()
    async with opened(members) as pool:
        image = await half_hot(pool)
        while await pool.cleaner.round():
            await pool.checkpoint()
        hot, cold = await live_bytes(pool, Role.MOVED), await live_bytes(pool, Role.SETTLED)
        assert cold > 8 * MIB
        assert 0 < hot < 1.2 * HOT_BYTES
        assert await read(pool, "v", 0, len(image)) == image
    await assert_clean(members)


async def test_victims_are_emptied_with_one_free_segment_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = await new_members()
    # No timer, no background cleaning: on a busy machine a commit or a round came in between.
    async with opened(members, PoolSettings(flush_interval_s=1e6)) as pool:
        monkeypatch.setattr(pool._reclaimer, "_is_alive", lambda: False)
        image = await half_hot(pool)
        both_kinds = pool.cleaner.victims()[:-4:-1]
        monkeypatch.setattr(pool.cleaner, "victims", lambda: both_kinds)
        floor = pool.table.free_segments() - 1
        monkeypatch.setattr(SpaceBudget, "cleaner_floor", floor)
        assert not await pool.cleaner.round()
        assert await pool.cleaner.round(mixed=True)
        assert pool.cleaner.emptied
        await pool.checkpoint()
        await pool.checkpoint()
        assert pool.table.free_segments() > floor
        assert await read(pool, "v", 0, len(image)) == image
    await assert_clean(members)
