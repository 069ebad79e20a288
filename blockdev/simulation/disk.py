"""Simulated disk with a volatile cache, power cuts and faults, for tests.

    world = SimulatedWorld(seed=7, cut_at=12)
    disk = SimulatedDisk(world, 64 * MIB)
    ...                                  # raises PowerCut at the twelfth operation
    disk = disk.reboot()                 # a new disk with the writes that survived

A write goes to the cache, and reads see it; `flush` makes all writes before its call
durable, a FUA write only itself. `blockdev.simulation.power` says which writes survive a
power cut. The seed of its world decides all that a disk does.

The disk is nastier than most, within the interface: a trim takes effect or not at
random, and then only for whole physical blocks; writes tear between 512-byte
sectors even on a disk with larger physical blocks.
"""

import random
import zlib
from dataclasses import replace

import trio
from typing_extensions import Buffer

from blockdev.device import EXTENTS_MAX, BlockDevice, Extent, check_range
from blockdev.errors import ClosedError, DeviceError
from blockdev.simulation.faults import FaultPlan
from blockdev.simulation.power import (
    SECTOR_BYTES,
    CachedWrite,
    PowerCut,
    PowerSupply,
    survivors,
    torn,
)
from blockdev.simulation.sparse import SparseBytes

_PAUSE_STEPS_MAX = 3
"""Scheduler steps of one pause: enough for a task to overtake another by a whole operation."""


class SimulatedDisk(FaultPlan, BlockDevice):
    """A disk of a `SimulatedWorld`; registers itself in `world.disks`. Faults: see `FaultPlan`.

    Args:
        size_bytes: a multiple of 512; sparse, so size costs nothing.
        physical_bytes: the value to report, 512 or 4096.
        garbles: a write torn inside a physical block destroys all of that block, as the
            read-modify-write of a 512e disk may.
        try_reads: answer `try_read` at once; by default it returns None, as with a cold cache.
        content: the durable content at the start; zeroes by default.
    """

    block_bytes = SECTOR_BYTES

    def __init__(
        self,
        world: "PowerSupply[SimulatedDisk]",
        size_bytes: int,
        *,
        physical_bytes: int = 4096,
        garbles: bool = False,
        try_reads: bool = False,
        content: SparseBytes | None = None,
    ) -> None:
        super().__init__()
        assert size_bytes % SECTOR_BYTES == 0
        self.world = world
        self.size_bytes = size_bytes
        self.physical_bytes = physical_bytes
        self.garbles = garbles
        self.try_reads = try_reads
        self._index = len(world.disks)
        world.disks.append(self)
        self._durable = SparseBytes() if content is None else content
        self._visible = self._durable.copy()
        self._cache: list[CachedWrite] = []
        self._in_flight: dict[int, CachedWrite] = {}
        self._written = 0
        self._closed = False

    # Operations

    async def read(self, offset: int, length: int) -> bytes:
        """Return the last written content, durable or not. Raises DeviceError, PowerCut."""
        self._enter(offset, length)
        await self._pause()
        return self._read(offset, length)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read at once if the disk was made with `try_reads`. Raises as `read`."""
        if not self.try_reads:
            return None
        self._enter(offset, length)
        return self._read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Put `data` into the cache, with `fua` on the disk. Raises DeviceError, PowerCut."""
        content = memoryview(data).tobytes()
        await self._store("write", offset, len(content), content, fua)

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_hole: bool = False,
        fast: bool = False,
    ) -> None:
        """Zero the range; counts as a write, also for `fail_write`."""
        await self._store("write", offset, length, None, fua)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Zero the whole physical blocks of the range, or do nothing, at random."""
        check_range(self, offset, length)
        first = -(-offset // self.physical_bytes) * self.physical_bytes
        last = (offset + length) // self.physical_bytes * self.physical_bytes
        if first >= last or self.world.coin.random() < 0.5:
            first = last = offset
        await self._store("trim", first, last - first, None, fua)

    async def flush(self) -> None:
        """Make all writes before the call durable.

        Raises:
            DeviceError: injected by `fail_flush`. Some unflushed writes are then durable, the
                others lost, though reads still show them; as in Linux the cache then counts as
                clean, so another flush succeeds and saves nothing.
        """
        self._enter(0, 0)
        covered = self._written
        await self._pause()
        cut = self.world.count()
        self._note("flush", 0, 0, None)
        if cut:
            raise PowerCut
        clean = [write for write in self._cache if write.number <= covered]
        try:
            if self._faulty("flush"):
                return
        except DeviceError:
            self._forget(clean)
            self._persist(survivors(self.world.coin, clean))
            raise
        self._forget(clean)
        self._persist([(write.offset, write.length, write.data) for write in clean])

    async def allocate(self, offset: int, length: int) -> None:
        """Do nothing but count the call. Raises NoSpaceError if injected by `fail_allocate`."""
        self._enter(offset, length)
        await self._pause()
        cut = self.world.count()
        self._note("allocate", offset, length, None)
        if cut:
            raise PowerCut
        self._faulty("allocate")

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Return extents: 4 KiB chunks never written, or zeroed whole, are holes."""
        self._enter(offset, length)
        return self._visible.extents(offset, length)[:EXTENTS_MAX]

    async def close(self) -> None:
        """Close; unflushed writes stay in the cache. Not a counted operation. Raises PowerCut."""
        if self.world.was_cut:
            raise PowerCut
        self._closed = True

    # Controls for tests

    def reboot(self, cut_at: int | None = None, *, outcome: int = 0) -> "SimulatedDisk":
        """Reboot the world, whose only disk this must be, and return the disk that comes up."""
        assert len(self.world.disks) == 1, "reboot the world: it has several disks"
        return self.world.reboot(cut_at, outcome=outcome).disks[0]

    def lose_cache(self, *, announce: bool = True) -> None:
        """Keep, tear or drop each unflushed write at random, as when a remote server restarts.
        With `announce` the next operation raises CacheLostError, once.
        """
        self._persist(survivors(self.world.coin, self._cache))
        self._cache.clear()
        self._visible = self._durable.copy()
        self._cache_lost = announce

    def corrupt(self, offset: int, length: int) -> None:
        """Change every byte of a range to garbage, durably and without an error. The range need
        not be in whole blocks.
        """
        noise = self.world.coin.randbytes(length)
        old = self._visible.read(offset, length)
        # The noise chooses one of 255 other values, so every byte changes.
        data = bytes((was + 1 + new % 255) % 256 for was, new in zip(old, noise, strict=True))
        self._keep(CachedWrite(0, offset, length, data, certain=True))

    def durable(self, offset: int, length: int) -> bytes:
        """Return the content that is certain to survive a power cut now. Not counted."""
        content = self._durable.copy()
        for write in self._cache:
            if write.certain:
                _apply(content, write.offset, write.length, write.data)
        return content.read(offset, length)

    def boot_into(self, world: "PowerSupply[SimulatedDisk]", coin: random.Random) -> None:
        """Add the rebooted disk to `world`; `coin` decides which unflushed writes it holds."""
        after = self._alike(world)
        garbled_bytes = self.physical_bytes if self.garbles else 0
        unflushed = [*self._cache, *self._in_flight.values()]
        after._persist(survivors(coin, unflushed, garbled_bytes=garbled_bytes))
        after._visible = after._durable.copy()

    def copy_into(self, world: "PowerSupply[SimulatedDisk]") -> None:
        """Add a disk to `world` with the same durable content, cache and writes in flight."""
        copy = self._alike(world)
        copy._cache = [*self._cache]
        copy._in_flight = dict(self._in_flight)

    # Internals

    def _alike(self, world: "PowerSupply[SimulatedDisk]") -> "SimulatedDisk":
        """Add a disk to `world` with the durable content of this one."""
        return SimulatedDisk(
            world,
            self.size_bytes,
            physical_bytes=self.physical_bytes,
            garbles=self.garbles,
            try_reads=self.try_reads,
            content=self._durable.copy(),
        )

    def _read(self, offset: int, length: int) -> bytes:
        cut = self.world.count(read=True)
        self._note("read", offset, length, None)
        if cut:
            raise PowerCut
        self._faulty("read")
        return self._visible.read(offset, length)

    async def _store(
        self, kind: str, offset: int, length: int, data: bytes | None, fua: bool
    ) -> None:
        self._enter(offset, length)
        write = CachedWrite(0, offset, length, data, certain=False)
        self._in_flight[id(write)] = write
        try:
            await self._pause()
            cut = self.world.count()
        finally:
            # A write in flight during a power cut may have reached the disk.
            if not self.world.was_cut:
                del self._in_flight[id(write)]
        self._note(kind, offset, length, data)
        if cut:
            raise PowerCut
        try:
            if self._faulty(kind):
                return
        except DeviceError:
            for piece in self._half_done(write):
                self._keep(CachedWrite(0, *piece, certain=False))
            raise
        self._keep(replace(write, certain=fua))

    def _half_done(self, write: CachedWrite) -> list[tuple[int, int, bytes | None]]:
        """Return the pieces that a failed write leaves: none, some sectors or all."""
        outcome = self.world.coin.randrange(3)
        if outcome == 0:
            return []
        if outcome == 1:
            return torn(self.world.coin, write)
        return [(write.offset, write.length, write.data)]

    def _keep(self, write: CachedWrite) -> None:
        """Show a write to reads, and put it into the cache or, if certain, on the disk."""
        _apply(self._visible, write.offset, write.length, write.data)
        if write.certain and not self._cache:
            _apply(self._durable, write.offset, write.length, write.data)
            return
        # Behind unflushed writes even a durable write waits in the list: an older
        # version of its sectors that survives must not come back over it.
        self._written += 1
        self._cache.append(replace(write, number=self._written))

    def _forget(self, clean: list[CachedWrite]) -> None:
        gone = {write.number for write in clean}
        self._cache = [write for write in self._cache if write.number not in gone]

    def _persist(self, pieces: list[tuple[int, int, bytes | None]]) -> None:
        for offset, length, data in pieces:
            _apply(self._durable, offset, length, data)

    def _enter(self, offset: int, length: int) -> None:
        if self.world.was_cut:
            raise PowerCut
        if self._closed:
            raise ClosedError(f"simulated disk is closed: disk={self._index}")
        check_range(self, offset, length)

    async def _pause(self) -> None:
        if self.world.checkpoints:
            for _ in range(self.world.coin.randint(1, _PAUSE_STEPS_MAX)):
                await trio.lowlevel.checkpoint()

    def _note(self, kind: str, offset: int, length: int, data: bytes | None) -> None:
        if self.world.trace is not None:
            checksum = 0 if data is None else zlib.crc32(data)
            self.world.trace.append((self._index, kind, offset, length, checksum))


def _apply(content: SparseBytes, offset: int, length: int, data: bytes | None) -> None:
    if data is None:
        content.zero(offset, length)
    else:
        content.write(offset, data)
