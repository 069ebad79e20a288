"""Requests that wait for a disk while their layer is frozen, deleted and merged."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from blockdev.memory import MemoryDevice
from storage.pool import Pool, create_pool
from storage.volumes.volume import Volume
from tests.unit.storage.pools import MIB, as_members, opened

DATA = b"x" * 8192


class GatedDevice(MemoryDevice):
    """A device whose reads wait for `gate` while `held` is set."""

    def __init__(self) -> None:
        super().__init__(64 * MIB)
        self.held = False
        self.gate = trio.Event()
        self.waiting = 0

    def try_read(self, offset: int, length: int) -> bytes:
        return None if self.held else super().try_read(offset, length)  # type: ignore[return-value]

    async def read(self, offset: int, length: int) -> bytes:
        if self.held:
            self.waiting += 1
            await self.gate.wait()
        return super().try_read(offset, length)


@asynccontextmanager
async def cold_volume() -> AsyncIterator[tuple[Pool, Volume, GatedDevice]]:
    """Make a volume that begins with DATA, and open it with none of that in memory."""
    disk = GatedDevice()
    members = as_members([disk])
    await create_pool(members, copies=1, segment_bytes=MIB)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        device = pool.open_export("v")
        await device.write(0, DATA)
        await device.close()
    async with opened(members) as pool:
        device = pool.open_export("v")
        yield pool, device, disk
        await device.close()


async def read(device: Volume) -> None:
    assert bytes(await device.read(0, len(DATA))) == DATA


async def write_half_a_block(device: Volume) -> None:
    await device.write(2048, b"y" * 4096)


async def describe(device: Volume) -> None:
    assert not (await device.extents(0, MIB))[0].zero


@pytest.mark.parametrize("request_to", [read, write_half_a_block, describe])
async def test_waiting_requests_see_all_data_after_a_merge(
    request_to: Callable[[Volume], Awaitable[None]],
) -> None:
    async with cold_volume() as (pool, device, disk):
        disk.held = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request_to, device)
            while not disk.waiting:
                await trio.lowlevel.checkpoint()
            disk.held = False
            before = set(pool.blockmap.layers)
            await pool.management.create_snapshot("v", "s")
            await pool.management.delete_snapshot("v", "s")
            await pool.checkpoint()
            await pool.checkpoint()
            assert not before & set(pool.blockmap.layers), "nothing was merged"
            disk.gate.set()
        expected = bytearray(DATA)
        if request_to is write_half_a_block:
            expected[2048:6144] = b"y" * 4096
        assert bytes(await device.read(0, len(DATA))) == expected
