"""Reservations and caps are kept at every moment, and are exact at checkpoints."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
import trio
from trio.testing import MockClock

from blockdev.errors import NoSpaceError
from storage.environment import Environment, in_line
from storage.errors import InvalidArgumentError
from storage.pool import MemberDevice, Pool, PoolSettings, open_pool
from storage.volumes.volume import Volume
from tests.unit.storage.pools import MIB, assert_clean, new_members, read, write
from tests.unit.storage.volumes.test_space import assert_adds_up

BLOCK = 4096
RARELY = PoolSettings(checkpoint_interval_s=1e6)


@asynccontextmanager
async def opened(members: list[MemberDevice]) -> AsyncIterator[Pool]:
    env = Environment(offload=in_line)
    async with open_pool(members, settings=RARELY, env=env) as pool:
        yield pool


async def set_space(pool: Pool, name: str, **space: int) -> None:
    await pool.management.note(name, {"space": space})


async def fill(device: Volume, coin: random.Random, size_bytes: int, step: int = 65536) -> int:
    """Write random data from the start until a write is refused; returns the bytes written."""
    taken = 0
    try:
        while taken < size_bytes:
            data = coin.randbytes(step)
            if not device.try_write(taken, data):
                await device.write(taken, data)
            taken += step
    except NoSpaceError:
        pass
    return taken


def own(pool: Pool, name: str) -> int:
    """The bytes of a volume's own data as of the last checkpoint."""
    [line] = [line for line in pool.volume_space(name) if line.name == name]
    return line.own_bytes


async def test_a_cap_stops_one_volume_and_no_other(autojump_clock: MockClock) -> None:
    members = await new_members(mib=128)
    coin = random.Random(1)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        await pool.management.create_volume("w", 64 * MIB)
        await set_space(pool, "v", cap_bytes=8 * MIB)
        v, w = pool.open_export("v"), pool.open_export("w")
        assert await fill(v, coin, 64 * MIB) == 8 * MIB
        with pytest.raises(NoSpaceError, match="at its cap"):
            await v.write(0, b"x")
        assert await fill(w, coin, 16 * MIB) == 16 * MIB
        await pool.checkpoint()
        assert own(pool, "v") == 8 * MIB
        await v.trim(0, MIB)
        assert await fill(v, coin, 64 * MIB) == MIB
        await set_space(pool, "v", cap_bytes=9 * MIB)
        await v.write(32 * MIB, coin.randbytes(MIB))
        with pytest.raises(NoSpaceError):
            await v.write(40 * MIB, coin.randbytes(BLOCK))
        await set_space(pool, "v", cap_bytes=0)
        await v.write(40 * MIB, coin.randbytes(4 * MIB))
        assert pool.management.volume("v").space == {}
        await v.close()
        await w.close()
    await assert_clean(members)


async def test_snapshots_count_and_shared_data_does_not(autojump_clock: MockClock) -> None:
    members = await new_members(mib=128)
    coin = random.Random(2)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        await set_space(pool, "v", cap_bytes=4 * MIB)
        await write(pool, "v", 0, coin.randbytes(2 * MIB))
        await pool.management.create_snapshot("v", "s")
        device = pool.open_export("v")
        assert await fill(device, coin, 64 * MIB) == 2 * MIB
        await device.trim(0, 64 * MIB)
        assert await fill(device, coin, 64 * MIB) == 2 * MIB  # the snapshot holds the other 2 MiB
        await pool.management.clone("v", "s", "c")
        assert await fill(device, coin, 64 * MIB) == 4 * MIB  # c reaches them too now
        await pool.management.delete_volume("c")
        await device.trim(0, MIB)
        with pytest.raises(NoSpaceError):
            await device.write(0, coin.randbytes(BLOCK))
        await pool.management.delete_snapshot("v", "s")
        await device.write(0, coin.randbytes(BLOCK))
        await device.close()
    await assert_clean(members)


async def test_a_capped_volume_may_be_overwritten_for_ever(autojump_clock: MockClock) -> None:
    """Goal: counts are upper bounds only until the next checkpoint, which writes wait for."""
    members = await new_members(mib=128)
    coin = random.Random(3)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 4 * MIB)
        await set_space(pool, "v", cap_bytes=5 * MIB)
        device = pool.open_export("v")
        for _ in range(6):
            assert await fill(device, coin, 4 * MIB) == 4 * MIB
            quota = pool.quotas.of("v")
            assert quota is not None
            assert pool.quotas.own_bytes(quota) <= 5 * MIB
        await device.close()
    await assert_clean(members)


async def test_small_and_partial_writes_count_too(autojump_clock: MockClock) -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await set_space(pool, "v", cap_bytes=4 * BLOCK)
        device = pool.open_export("v")
        for i in range(4):
            await device.write(i * BLOCK + 100, b"x" * 10)
        with pytest.raises(NoSpaceError):
            await device.write(4 * BLOCK + 100, b"x" * 10)
        with pytest.raises(NoSpaceError):
            await device.write_zeroes(100, 50)  # a partial block has to be written, too
        await device.write_zeroes(0, BLOCK)
        await device.write(8 * BLOCK, b"x" * 10)
        assert bytes(await device.read(4 * BLOCK, BLOCK)) == bytes(BLOCK)
        await device.close()
    await assert_clean(members)


async def test_many_writers_at_the_cap_share_the_checkpoints(autojump_clock: MockClock) -> None:
    """Goal: a volume at its cap does not keep the pool busy: one checkpoint a second at most."""
    members = await new_members(mib=128)
    coin = random.Random(4)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        await set_space(pool, "v", cap_bytes=MIB)
        device = pool.open_export("v")
        await device.write(0, coin.randbytes(MIB))
        number, started = pool.checkpointer.number, trio.current_time()
        refused = 0

        async def hammer(i: int) -> None:
            nonlocal refused
            for k in range(20):
                try:
                    await device.write((i * 20 + k) % 512 * BLOCK, coin.randbytes(BLOCK))
                except NoSpaceError:
                    refused += 1
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for i in range(32):
                nursery.start_soon(hammer, i)
        took = trio.current_time() - started
        assert pool.checkpointer.number - number <= took + 2
        assert refused > 500
        assert took < 30
        await device.close()
    await assert_clean(members)


async def test_reserved_space_can_be_written_when_other_volumes_are_refused(
    autojump_clock: MockClock,
) -> None:
    members = await new_members(mib=96)
    coin = random.Random(5)
    async with opened(members) as pool:
        await pool.management.create_volume("mine", 64 * MIB)
        await pool.management.create_volume("other", 1 << 30)
        await set_space(pool, "mine", reserve_bytes=24 * MIB)
        mine, other = pool.open_export("mine"), pool.open_export("other")
        await mine.write(0, coin.randbytes(4 * MIB))
        taken = await fill(other, coin, 1 << 30)
        assert 30 * MIB < taken < 70 * MIB
        with pytest.raises(NoSpaceError, match="promised to other"):
            await other.write(0, coin.randbytes(BLOCK))
        assert_adds_up(pool)
        for at in range(4 * MIB, 24 * MIB, 65536):
            await mine.write(at, coin.randbytes(65536))
        await mine.flush()
        with pytest.raises(NoSpaceError):
            await other.write(0, coin.randbytes(MIB))
        await set_space(pool, "mine", reserve_bytes=0)
        await other.trim(0, 8 * MIB)
        assert await fill(other, coin, 4 * MIB) == 4 * MIB
        await mine.close()
        await other.close()
    await assert_clean(members)


async def test_promised_space_shrinks_as_it_is_used_and_outlives_a_restart(
    autojump_clock: MockClock,
) -> None:
    members = await new_members(mib=128)
    coin = random.Random(6)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        await set_space(pool, "v", reserve_bytes=32 * MIB, cap_bytes=48 * MIB)
        assert pool.space_info().promised_bytes == 32 * MIB
        await write(pool, "v", 0, coin.randbytes(8 * MIB))
        assert pool.space_info().promised_bytes == 24 * MIB
    async with opened(members) as pool:
        assert pool.management.volume("v").space == {
            "reserve_bytes": 32 * MIB,
            "cap_bytes": 48 * MIB,
        }
        assert pool.space_info().promised_bytes == 24 * MIB
        await pool.management.rename_volume("v", "w")
        device = pool.open_export("w")
        assert await fill(device, coin, 64 * MIB) == 48 * MIB
        assert pool.space_info().promised_bytes == 0
        await device.trim(0, 64 * MIB)
        await device.flush()
        await pool.checkpoint()
        assert pool.space_info().promised_bytes == 32 * MIB
        await device.close()
        await pool.management.delete_volume("w")
        assert pool.space_info().promised_bytes == 0


async def test_a_reservation_that_cannot_be_kept_is_refused(autojump_clock: MockClock) -> None:
    members = await new_members(mib=128)
    async with opened(members) as pool:
        for name in ("v", "w"):
            await pool.management.create_volume(name, 1 << 30)
        with pytest.raises(NoSpaceError, match="cannot promise"):
            await set_space(pool, "v", reserve_bytes=128 * MIB)
        await set_space(pool, "v", reserve_bytes=60 * MIB)
        with pytest.raises(NoSpaceError, match="cannot promise"):
            await set_space(pool, "w", reserve_bytes=60 * MIB)
        await set_space(pool, "w", reserve_bytes=30 * MIB)
        with pytest.raises(InvalidArgumentError, match="above the cap"):
            await set_space(pool, "w", cap_bytes=20 * MIB)
        await pool.management.create_snapshot("v", "s")
        with pytest.raises(InvalidArgumentError, match="snapshot"):
            await set_space(pool, "v@s", cap_bytes=MIB)
        for wrong in ({"cap_bytes": -1}, {"cap_bytes": 1.5}, {"cap": 1}, {"cap_bytes": True}):
            with pytest.raises(InvalidArgumentError, match="bad reservation"):
                await pool.management.note("v", {"space": wrong})


class Capped:
    """Two capped volumes, their snapshots and clones, against plain dictionaries."""

    CAPS: ClassVar = {"a": 2 * MIB, "b": 3 * MIB}

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.coin = random.Random(seed)
        self.images: dict[str, dict[int, bytes]] = {name: {} for name in self.CAPS}
        self.snapshots: dict[tuple[str, str], dict[int, bytes]] = {}
        self.cloned: set[str] = set()
        self.refused = 0

    async def step(self, number: int) -> None:
        coin, pool = self.coin, self.pool
        name = coin.choice([*self.CAPS])
        action = coin.choice("wwwwwwttsrdckk")
        if action in "wt":
            first, count = coin.randrange(1500), coin.choice([1, 5, 40, 200])
            await (self.write if action == "w" else self.trim)(name, first, count)
        elif action == "s":
            await pool.management.create_snapshot(name, f"s{number}")
            self.snapshots[name, f"s{number}"] = dict(self.images[name])
        elif action in "rdc" and self.snapshots:
            key = coin.choice(sorted(self.snapshots))
            if action == "r":
                await pool.management.rollback(*key)
                self.images[key[0]] = dict(self.snapshots[key])
            elif action == "d":
                await pool.management.delete_snapshot(*key)
                del self.snapshots[key]
            elif f"c{key[1]}" not in {one.name for one in pool.management.volumes()}:
                await pool.management.clone(*key, f"c{key[1]}")
                self.cloned.add(key[0])
        else:
            await pool.checkpoint()

    async def write(self, name: str, first: int, count: int) -> None:
        device = self.pool.open_export(name)
        for block in range(first, first + count):
            data = self.coin.randbytes(8) * (BLOCK // 8)
            try:
                if not device.try_write(block * BLOCK, data):
                    await device.write(block * BLOCK, data)
            except NoSpaceError:
                self.refused += 1
                break
            self.images[name][block] = data
        await device.close()

    async def trim(self, name: str, first: int, count: int) -> None:
        device = self.pool.open_export(name)
        await device.trim(first * BLOCK, count * BLOCK)
        await device.close()
        for block in range(first, first + count):
            self.images[name].pop(block, None)

    def verify_counts(self) -> None:
        for name, cap in self.CAPS.items():
            quota = self.pool.quotas.of(name)
            assert quota is not None
            bound = self.pool.quotas.own_bytes(quota)
            assert own(self.pool, name) <= cap
            assert bound <= cap
            if name not in self.cloned:  # else a clone may share some of its data
                assert bound >= len(self.images[name]) * BLOCK

    async def verify_data(self) -> None:
        for name, image in self.images.items():
            found = await read(self.pool, name, 0, 8 * MIB)
            for block in range(8 * MIB // BLOCK):
                wanted = image.get(block, bytes(BLOCK))
                assert found[block * BLOCK : (block + 1) * BLOCK] == wanted


@pytest.mark.parametrize("seed", range(6))
async def test_random_operations_never_pass_a_cap(seed: int, autojump_clock: MockClock) -> None:
    """Goal: neither the bounds nor a checkpoint ever count more than the cap, bounds are never less
    than the data, and a refused write changes nothing.

    Method: writes, trims, snapshots, rollbacks and clones of capped volumes against plain
    dictionaries. Volumes are not deleted, as that turns shared data into own data.
    """
    members = await new_members(mib=256)
    async with opened(members) as pool:
        capped = Capped(pool, seed)
        for name, cap in capped.CAPS.items():
            await pool.management.create_volume(name, 8 * MIB)
            await set_space(pool, name, cap_bytes=cap)
        for number in range(120):
            await capped.step(number)
            capped.verify_counts()
        await capped.verify_data()
        assert capped.refused > 3
        assert_adds_up(pool)
    await assert_clean(members)
