"""Simulated disks that can be photographed while they work, and that fail in more ways.

A photo holds the durable content and the unflushed writes of all disks at one operation. Any number
of worlds can be booted from it, so one run of a workload gives a crash at each of its operations.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio
from xxhash import xxh3_64_intdigest

from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.power import SECTOR_BYTES, CachedWrite, survivors
from blockdev.simulation.sparse import SparseBytes
from blockdev.simulation.world import SimulatedWorld
from storage.format.superblock import DATA_START_BYTES

NOTHING_PLANNED = 1 << 62
KINDS = {"read": 1, "write": 2, "trim": 3, "flush": 4, "allocate": 5}


@dataclass(frozen=True)
class DiskPhoto:
    """One disk at one operation."""

    size_bytes: int
    physical_bytes: int
    garbles: bool
    try_reads: bool
    durable: SparseBytes
    unflushed: tuple[CachedWrite, ...]


@dataclass(frozen=True)
class Photo:
    """All disks of a world at one operation."""

    disks: tuple[DiskPhoto, ...]
    operations: int


class SimWorld(SimulatedWorld):
    """A world whose operations are counted, hashed, and watched.

    `watch` is called before operation number `watch_at` takes effect; it may take photos, plant
    faults, and set `watch_at` to a later operation. Reads are not counted.
    """

    def __init__(self, seed: int, *, traced: bool = False) -> None:
        super().__init__(seed, count_reads=False, checkpoints=True)
        self.hashed = 0
        """With `traced`: hash of every operation so far and its result."""
        self.is_traced = traced
        self.watch_at = NOTHING_PLANNED
        self.watch: Callable[[], None] = lambda: None
        self.pauses_reads = True

    def count(self, *, read: bool = False) -> bool:
        cut = super().count(read=read)
        if not read and self.operations >= self.watch_at and not cut:
            self.watch()
        return cut

    def photo(self) -> Photo:
        """Copy all disks as they are now; writes in flight count as not flushed."""
        return Photo(
            tuple(disk.photo() for disk in self.disks if isinstance(disk, SimDisk)),
            self.operations,
        )

    def note(self, *facts: int) -> None:
        """Add numbers to the hash."""
        words = b"".join(fact.to_bytes(8, "little") for fact in (self.hashed, *facts))
        self.hashed = xxh3_64_intdigest(words)


class SimDisk(SimulatedDisk):
    """A disk of a SimWorld."""

    world: SimWorld

    def __init__(
        self, world: SimWorld, size_bytes: int, *, physical_bytes: int = 4096,
        garbles: bool = False, try_reads: bool = False, content: SparseBytes | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            world, size_bytes, physical_bytes=physical_bytes, garbles=garbles,
            try_reads=try_reads, content=content,
        )  # fmt: skip
        self.slow_s = 0.0
        """Longest time that an operation takes, in seconds."""
        self.misdirected = 0
        """Number of next writes behind the superblocks that go to a wrong place."""

    def photo(self) -> DiskPhoto:
        return DiskPhoto(
            self.size_bytes, self.physical_bytes, self.garbles, self.try_reads,
            self._durable.copy(), (*self._cache, *self._in_flight.values()),
        )  # fmt: skip

    async def read(self, offset: int, length: int) -> bytes:
        self._enter(offset, length)
        if self.world.pauses_reads:
            await self._pause()
        return self._read(offset, length)

    def read_ahead(self, offset: int, length: int) -> bool:
        return True  # so that callers ask `try_read` for it, which answers if `try_reads` is set

    async def _pause(self) -> None:
        if self.slow_s:
            await trio.sleep(self.world.coin.random() * self.slow_s)
        await super()._pause()

    def _keep(self, write: CachedWrite) -> None:
        if self.misdirected and write.offset >= DATA_START_BYTES:
            self.misdirected -= 1
            sectors = (self.size_bytes - DATA_START_BYTES - write.length) // SECTOR_BYTES
            place = DATA_START_BYTES + self.world.coin.randrange(sectors) * SECTOR_BYTES
            write = replace(write, offset=place // 4096 * 4096)
        super()._keep(write)

    def _read(self, offset: int, length: int) -> bytes:
        data = super()._read(offset, length)
        if self.world.is_traced:
            self.world.note(self._index, 0, offset, length, xxh3_64_intdigest(data))
        return data

    def _note(self, kind: str, offset: int, length: int, data: bytes | None) -> None:
        if self.world.is_traced and kind != "read":
            digest = xxh3_64_intdigest(data) if data else 0
            self.world.note(self._index, KINDS[kind], offset, length, digest)

    def written_chunks(self) -> list[int]:
        """Return the indices of the 4 KiB chunks that were written, ascending."""
        return sorted(self._visible._chunks)


def boot(photo: Photo, seed: int, *, traced: bool = False) -> SimWorld:
    """Return the world after a power cut at a photo; `seed` decides which writes survive."""
    coin = random.Random(f"boot {seed}")
    world = SimWorld(seed, traced=traced)
    for taken in photo.disks:
        disk = SimDisk(
            world, taken.size_bytes, physical_bytes=taken.physical_bytes, garbles=taken.garbles,
            try_reads=taken.try_reads, content=taken.durable.copy(),
        )  # fmt: skip
        garbled_bytes = taken.physical_bytes if taken.garbles else 0
        disk._persist(survivors(coin, list(taken.unflushed), garbled_bytes=garbled_bytes))
        disk._visible = disk._durable.copy()
    return world
