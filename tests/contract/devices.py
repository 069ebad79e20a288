"""Every implementation of BlockDevice, by name. Add a line to DEVICES to test another one.

A factory takes an empty directory and yields a new device, all zeroes, of at least
SIZE_BYTES, whose block size divides 4096. It closes the device at its end.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from blockdev.device import BlockDevice
from blockdev.file import FileDevice
from blockdev.memory import MemoryDevice
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from nbd.client import ClientOptions, open_nbd
from storage.pool import MemberDevice, create_pool, open_pool
from tests.unit.nbd.client.serving import KeptDevice, served

SIZE_BYTES = 1 << 20

Factory = Callable[[Path], AbstractAsyncContextManager[BlockDevice]]


@asynccontextmanager
async def memory(directory: Path) -> AsyncIterator[BlockDevice]:
    device = MemoryDevice(SIZE_BYTES)
    yield device
    await device.close()


@asynccontextmanager
async def memory_in_sectors(directory: Path) -> AsyncIterator[BlockDevice]:
    device = MemoryDevice(SIZE_BYTES, block_bytes=512)
    yield device
    await device.close()


@asynccontextmanager
async def file(directory: Path) -> AsyncIterator[BlockDevice]:
    device = FileDevice.create(directory / "device.raw", SIZE_BYTES)
    yield device
    await device.close()


@asynccontextmanager
async def file_of_odd_size(directory: Path) -> AsyncIterator[BlockDevice]:
    device = FileDevice.create(directory / "device.raw", SIZE_BYTES + 777)
    yield device
    await device.close()


@asynccontextmanager
async def simulated(directory: Path) -> AsyncIterator[BlockDevice]:
    device = SimulatedDisk(SimulatedWorld(seed=1), SIZE_BYTES)
    yield device
    await device.close()


@asynccontextmanager
async def simulated_interleaving(directory: Path) -> AsyncIterator[BlockDevice]:
    world = SimulatedWorld(seed=2, checkpoints=True)
    device = SimulatedDisk(world, SIZE_BYTES, physical_bytes=512, try_reads=True)
    yield device
    await device.close()


async def _volume_of(devices: list[BlockDevice], copies: int) -> AsyncIterator[BlockDevice]:
    members = [MemberDevice(d, f"member{i}", f"host{i}") for i, d in enumerate(devices)]
    await create_pool(members, copies=copies, segment_bytes=1 << 20)
    async with open_pool(members) as pool:
        await pool.management.create_volume("v", SIZE_BYTES)
        device = pool.open_export("v")
        yield device
        await device.close()


@asynccontextmanager
async def volume(directory: Path) -> AsyncIterator[BlockDevice]:
    async for device in _volume_of([MemoryDevice(64 << 20)], copies=1):
        yield device


@asynccontextmanager
async def volume_on_disks(directory: Path) -> AsyncIterator[BlockDevice]:
    world = SimulatedWorld(seed=3, checkpoints=True)
    disks: list[BlockDevice] = [SimulatedDisk(world, 64 << 20, try_reads=True) for _ in range(3)]
    async for device in _volume_of(disks, copies=2):
        yield device


@asynccontextmanager
async def remote(directory: Path) -> AsyncIterator[BlockDevice]:
    async with served(directory, KeptDevice(SIZE_BYTES)) as uri, open_nbd(uri) as device:
        yield device


@asynccontextmanager
async def remote_in_sectors(directory: Path) -> AsyncIterator[BlockDevice]:
    options = ClientOptions(extended=False, connections=1, payload_bytes_max=64 << 10)
    kept = KeptDevice(SIZE_BYTES, block_bytes=512)
    async with served(directory, kept) as uri, open_nbd(uri, options=options) as device:
        yield device


DEVICES: dict[str, Factory] = {
    "memory": memory,
    "memory-512": memory_in_sectors,
    "file": file,
    "file-odd-size": file_of_odd_size,
    "simulated": simulated,
    "simulated-interleaving": simulated_interleaving,
    "volume": volume,
    "volume-on-disks": volume_on_disks,
    "remote": remote,
    "remote-512": remote_in_sectors,
}
