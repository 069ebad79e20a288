"""Freed slots give their space back to the file system; slots in use are never trimmed."""

import logging
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from blockdev.errors import DeviceError
from blockdev.file import FileDevice
from blockdev.memory import MemoryDevice
from storage.format.superblock import DATA_START_BYTES
from storage.members import slots, trimmer
from storage.members.slots import KEEP_S, FreeSlots
from storage.members.trimmer import Trimmer
from storage.pool import MemberDevice, Pool, PoolSettings, create_pool
from tests.unit.hang import HANG_S
from tests.unit.storage.checkpoint.test_merge import Family, settle
from tests.unit.storage.pools import MIB, as_members, assert_clean, opened, write


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimmer, "LOOK_INTERVAL_S", 0.005)
    monkeypatch.setattr(trimmer, "REST_FACTOR", 0)


NEVER = PoolSettings(checkpoint_interval_s=1e9)


def test_used_slots_are_taken_first_the_last_freed_one_before_others() -> None:
    free = FreeSlots(range(4), slots=64)
    assert [free.take(), free.take()] == [0, 1]
    free.give(1, 10.0)
    free.give(0, 11.0)
    assert free.peek() == 0
    assert [free.take() for _ in range(5)] == [0, 1, 2, 3, None]
    assert len(free) == 0


def test_more_used_slots_than_are_kept_are_trimmed_the_oldest_first() -> None:
    free = FreeSlots(range(8), slots=64)
    for slot in [free.take() for _ in range(8)]:
        assert slot is not None
        free.give(slot, float(slot))
    for expected in range(4):
        assert free.begin_trim(9.0) == expected
        assert free.begin_trim(9.0) is None  # one at a time
        assert len(free) == 8
        free.end_trim(done=True, now=9.0)
    assert free.begin_trim(9.0) is None
    assert free.begin_trim(4.0 + KEEP_S) == 4  # the wait is over for this one
    free.end_trim(done=False, now=700.0)
    assert free.begin_trim(701.0) == 5
    assert [free.take() for _ in range(8)] == [4, 7, 6, 0, 1, 2, 3, None]


async def test_the_last_slot_is_waited_for_while_it_is_trimmed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    free = FreeSlots([])
    free.give(7, 0.0)
    assert free.begin_trim(KEEP_S) == 7
    assert (len(free), free.take()) == (1, None)
    taken: list[int | None] = []

    async def take() -> None:
        taken.append(await free.take_or_wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        free.end_trim(done=True, now=1.0)
    assert sorted(taken, key=str) == [7, None]


class Watched(MemoryDevice):
    """Trims slowly, and leaves garbage: a trim of a slot in use would be noticed."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.slots_in_use: Callable[[], set[int]] = set
        self.trimmed: list[int] = []

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        slot = (offset - DATA_START_BYTES) // MIB
        for _ in range(3):
            assert slot not in self.slots_in_use()
            await trio.sleep(0.001)
        await self.write(offset, b"\xee" * length)
        assert slot not in self.slots_in_use()
        self.trimmed.append(slot)


async def fresh(device: MemoryDevice | FileDevice) -> list[MemberDevice]:
    made = as_members([device])
    await create_pool(made, copies=1, segment_bytes=MIB)
    return made


def in_use(pool: Pool) -> set[int]:
    return {copy.slot for segment in pool.table.all() for copy in segment.copies}


@pytest.mark.parametrize("seed", range(4))
async def test_slots_in_use_are_never_trimmed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: contents, counts and the check hold while free slots turn to garbage at once.

    Method: random families of volumes, beside a volume that is overwritten as a whole again and
    again; no used slot is kept untrimmed.
    """
    monkeypatch.setattr(slots, "KEEP_MIN", 0)
    device = Watched(200 * MIB)
    members = await fresh(device)
    async with opened(members) as pool:
        family = Family(pool, seed)
        await pool.management.create_volume("churn", MIB)
    family.beside = {"churn"}
    for _ in range(3):
        async with opened(members) as pool:
            device.slots_in_use = lambda pool=pool: in_use(pool)  # type: ignore[misc]
            family.pool = pool
            for _ in range(25):
                await family.step()
                await write(pool, "churn", 0, family.coin.randbytes(MIB))
                await pool.checkpoint()
                await trio.sleep(0.01)
            await family.verify()
            await settle(pool)
            device.slots_in_use = set
        await assert_clean(members)
    assert len(device.trimmed) > 8


async def no_trimming(trimmer: Trimmer) -> None:
    """Stands for a daemon that stops before its trimmer looks."""


async def allocated(path: Path, pool: Pool, at_most: int) -> None:
    with trio.fail_after(HANG_S):
        while path.stat().st_blocks * 512 > at_most:
            await trio.sleep(0.02)


async def test_a_sparse_file_shrinks_when_data_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some slots are kept for reuse; they are trimmed too when they stay free for long."""
    monkeypatch.setattr(slots, "KEEP_S", math.inf)
    path = tmp_path / "member.img"
    device = FileDevice.create(path, 128 * MIB)
    members = await fresh(device)
    async with opened(members, NEVER) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        await write(pool, "v", 0, random.Random(1).randbytes(40 * MIB))
        await settle(pool)
        assert path.stat().st_blocks * 512 > 40 * MIB
        await pool.management.delete_volume("v")
        await settle(pool)
        in_use_bytes = len(in_use(pool)) * MIB
        await allocated(path, pool, in_use_bytes + 4 * MIB + MIB)
        assert path.stat().st_blocks * 512 > 4 * MIB
        free = pool.info().free_bytes
        monkeypatch.setattr(slots, "KEEP_S", 0.0)
        await allocated(path, pool, in_use_bytes + MIB)
        assert pool.info().free_bytes == free
    await device.close()
    await assert_clean(as_members([FileDevice.open(path)]))


async def test_used_slots_are_found_and_trimmed_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "member.img"
    device = FileDevice.create(path, 128 * MIB)
    members = await fresh(device)
    with monkeypatch.context() as patch:
        patch.setattr(Trimmer, "run", no_trimming)
        async with opened(members, NEVER) as pool:
            await pool.management.create_volume("v", 64 * MIB)
            await write(pool, "v", 0, random.Random(1).randbytes(40 * MIB))
            await settle(pool)
            await pool.management.delete_volume("v")
            await settle(pool)
            used = path.stat().st_blocks * 512
    assert used > 30 * MIB
    async with opened(members, NEVER) as pool:
        await allocated(path, pool, len(in_use(pool)) * MIB + 4 * MIB + MIB)
    await device.close()


async def test_a_device_that_fails_to_trim_is_not_trimmed_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slots, "KEEP_MIN", 0)
    tries = 0

    class Unable(MemoryDevice):
        async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
            nonlocal tries
            tries += 1
            raise DeviceError("broken")

    members = await fresh(Unable(64 * MIB))
    with caplog.at_level(logging.WARNING):
        async with opened(members, NEVER) as pool:
            await pool.checkpoint()
            free = pool.info().free_bytes
            await pool.management.create_volume("v", 64 * MIB)
            await write(pool, "v", 0, random.Random(1).randbytes(8 * MIB))
            await settle(pool)
            await pool.management.delete_volume("v")
            await settle(pool)
            with trio.fail_after(HANG_S):
                while not tries:
                    await trio.sleep(0.005)
            await trio.sleep(0.2)  # a second try would come soon
            assert pool.info().free_bytes == free
            assert pool.failure is None
    assert tries == 1
    assert "not given back" in caplog.text
    await assert_clean(members)
