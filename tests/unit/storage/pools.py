"""Small pools in memory, for tests of storage."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from storage.pool import MemberDevice, Pool, PoolSettings, create_pool, open_pool
from storage.verify.check import check_pool

MIB = 1 << 20


def as_members(devices: list[BlockDevice]) -> list[MemberDevice]:
    return [MemberDevice(d, f"member{i}", f"host{i}") for i, d in enumerate(devices)]


async def new_members(count: int = 1, copies: int = 1, mib: int = 64) -> list[MemberDevice]:
    made = as_members([MemoryDevice(mib * MIB) for _ in range(count)])
    await create_pool(made, copies=copies, segment_bytes=MIB)
    return made


@asynccontextmanager
async def opened(
    members: list[MemberDevice], settings: PoolSettings | None = None
) -> AsyncIterator[Pool]:
    async with open_pool(members, settings=settings or PoolSettings()) as pool:
        yield pool


async def assert_clean(members: list[MemberDevice]) -> None:
    report = await check_pool(members)
    assert report.damage == []


async def write(pool: Pool, name: str, offset: int, data: bytes) -> None:
    device = pool.open_export(name)
    await device.write(offset, data)
    await device.close()


async def read(pool: Pool, name: str, offset: int, length: int) -> bytes:
    device = pool.open_export(name)
    data = bytes(await device.read(offset, length))
    await device.close()
    return data
