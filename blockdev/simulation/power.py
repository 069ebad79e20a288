"""The power supply of simulated disks: one count of operations, one cut for all.

A cut keeps, drops or tears each unflushed write on its own: a later write may
survive an earlier one. Writes tear between 512-byte sectors. Survivors apply in
the order of writing, so an overwritten version never comes back over a newer one
that survived, as in any cache that holds one version of a sector. A FUA write that
returned survives. The cut operation, and the operations in flight beside it, count
as unflushed writes.

The share of survivors varies from cut to cut, from none to all: with one fixed
probability "all but the last" would hardly ever come up. The seed decides
everything; one seed and the same calls give the same disks.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

SECTOR_BYTES = 512
"""The unit that no disk tears."""

_SURVIVAL = (0.0, 0.2, 0.5, 0.8, 1.0)
_TORN = 1 / 3
"""Share of torn writes among the writes that do not survive whole; the others are dropped."""
_TEARS_MAX = 4
"""Cuts in a torn write: enough for a prefix, a suffix, a hole and islands; more cuts look no
different to a parser."""


class PowerCut(BaseException):
    """The power is off. Not an Exception, and raised again by every later operation, so that
    error handling cannot tidy up after the crash. Nurseries wrap it: catch with `except*`.
    """


@dataclass(frozen=True, slots=True)
class CachedWrite:
    """A write in a disk's volatile cache; `data` is None for zeroes. `certain`: the write is
    durable already (FUA) and is listed only to keep its place in the order.
    """

    number: int
    offset: int
    length: int
    data: bytes | None
    certain: bool


class Powered(Protocol):
    """A device on a power supply; after a cut it comes back with the writes that survived."""

    def boot_into(self, world: Any, coin: random.Random) -> None:
        """Add the rebooted device to `world`; `coin` decides which writes survived."""
        ...

    def copy_into(self, world: Any) -> None:
        """Add a copy of this device to `world`, with its unflushed writes and those in flight."""
        ...


Disk = TypeVar("Disk", bound=Powered)


class PowerSupply(Generic[Disk]):
    """The power and the random numbers that several simulated disks share.

    Args:
        seed: of the random numbers (`coin`).
        cut_at: the operation that is cut, counted from 1 over all disks; None never cuts.
        count_reads: False leaves reads out of the count (they still fail after the cut),
            which gives a test fewer and more telling places to cut.
        checkpoints: operations wait for one to three scheduler steps, by the seed, so that
            tasks interleave. The trio scheduler must itself be seeded for one seed to
            give one run.
        traced: record each operation in `trace`.
    """

    def __init__(
        self,
        seed: int,
        cut_at: int | None = None,
        *,
        count_reads: bool = True,
        checkpoints: bool = False,
        traced: bool = False,
    ) -> None:
        self.seed = seed
        self.cut_at = cut_at
        self.count_reads = count_reads
        self.checkpoints = checkpoints
        self.operations = 0
        """Operations counted so far, the cut one included."""
        self.was_cut = False
        self.at_operation: Callable[[], None] | None = None
        """Called at each counted operation that is not cut, before the operation takes effect."""
        self.disks: list[Disk] = []
        """Every disk of this world, in the order of creation."""
        self.coin = random.Random(seed)
        self.trace: list[tuple[object, ...]] | None = [] if traced else None
        """(disk index, operation, offset, length, crc32 of the data) for each operation, if
        `traced`."""

    def cut_power(self) -> None:
        """Cut the power of every disk now; each later operation raises PowerCut."""
        self.was_cut = True

    def reboot(
        self, cut_at: int | None = None, *, outcome: int = 0, seed: int | None = None
    ) -> Self:
        """Cut the power if it is still on, and return a new world whose `disks`, in the same
        order, hold the writes that survived. Planned faults are gone.

        Rebooting twice gives the same disks; another `outcome` gives another result of the same
        crash. The new world counts operations from zero; its seed is `seed`, or else follows
        from this world's seed.
        """
        self.cut_power()
        coin = random.Random(f"{self.seed} {self.operations} {outcome}")
        after = type(self)(
            coin.getrandbits(32) if seed is None else seed,
            cut_at,
            count_reads=self.count_reads,
            checkpoints=self.checkpoints,
            traced=self.trace is not None,
        )
        for disk in self.disks:
            disk.boot_into(after, coin)
        return after

    def copy_as_cut(self) -> Self:
        """Return a copy of this world whose power is cut at this operation, while this world goes
        on: a reboot of the copy gives the disks that a reboot of this world would give now.
        """
        copy = type(self)(
            self.seed,
            count_reads=self.count_reads,
            checkpoints=self.checkpoints,
            traced=self.trace is not None,
        )
        copy.operations = self.operations
        for disk in self.disks:
            disk.copy_into(copy)
        copy.cut_power()
        return copy

    def count(self, *, read: bool = False) -> bool:
        """Count one operation; True if it is the operation to cut.

        Raises:
            PowerCut: the power is off already.
        """
        if self.was_cut:
            raise PowerCut
        if read and not self.count_reads:
            return False
        self.operations += 1
        if self.operations == self.cut_at:
            self.was_cut = True
        elif self.at_operation is not None:
            self.at_operation()
        return self.was_cut


def survivors(
    coin: random.Random, writes: list[CachedWrite], *, garbled_bytes: int = 0
) -> list[tuple[int, int, bytes | None]]:
    """Choose the unflushed writes that survive; return (offset, length, data) of the pieces to
    apply, in order.

    Args:
        garbled_bytes: if not 0, a torn write also turns the physical blocks of this size that
            it covers only in part to garbage, as a 512e disk may that loses power within its
            read-modify-write.
    """
    keep = coin.choice(_SURVIVAL)
    applied: list[tuple[int, int, bytes | None]] = []
    for write in writes:
        if write.certain or coin.random() < keep:
            applied.append((write.offset, write.length, write.data))
        elif coin.random() < _TORN:
            if garbled_bytes:
                applied += _garbled(coin, write, garbled_bytes)
            applied += torn(coin, write)
    return applied


def torn(coin: random.Random, write: CachedWrite) -> list[tuple[int, int, bytes | None]]:
    """Return some sectors of a write: runs alternate between kept and lost."""
    sectors = write.length // SECTOR_BYTES
    if sectors < 2:
        return []
    tears = {coin.randrange(1, sectors) for _ in range(coin.randint(1, _TEARS_MAX))}
    edges = [0, *sorted(tears), sectors]
    pieces: list[tuple[int, int, bytes | None]] = []
    for index in range(coin.randrange(2), len(edges) - 1, 2):
        start, end = edges[index] * SECTOR_BYTES, edges[index + 1] * SECTOR_BYTES
        data = None if write.data is None else write.data[start:end]
        pieces.append((write.offset + start, end - start, data))
    return pieces


def _garbled(
    coin: random.Random, write: CachedWrite, physical_bytes: int
) -> list[tuple[int, int, bytes | None]]:
    """Return garbage for the physical blocks that the write covers only in part."""
    end = write.offset + write.length
    partial = set()
    if write.offset % physical_bytes:
        partial.add(write.offset // physical_bytes)
    if end % physical_bytes:
        partial.add(end // physical_bytes)
    return [
        (block * physical_bytes, physical_bytes, coin.randbytes(physical_bytes))
        for block in sorted(partial)
    ]
