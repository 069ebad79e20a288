"""Plants the faults of a plan on the disks of a world."""

import random
from collections.abc import Callable

from blockdev.errors import DeviceError, NoSpaceError
from storage.format.superblock import DATA_START_BYTES, RING_SLOTS, SUPERBLOCK_BYTES
from storage.members.member import closing_offset
from tests.sim.disks import SimDisk, SimWorld
from tests.sim.plan import Item

Later = Callable[[int, Callable[[], None]], None]
"""Call a function so many device operations later."""


def plant(world: SimWorld, item: Item, later: Later) -> None:
    """Plant one fault, with effect from now on."""
    disk = world.disks[item.member]
    assert isinstance(disk, SimDisk)
    _PLANTS[item.kind](disk, random.Random(item.seed), later)


def _no_space(disk: SimDisk, rng: random.Random, later: Later) -> None:
    disk.fail_allocate(1, times=rng.randint(1, 6))
    if rng.random() < 0.3:
        disk.fail_write(1, error=NoSpaceError)


def _dead(disk: SimDisk, rng: random.Random, later: Later) -> None:
    disk.dead = True


def _dead_for_a_while(disk: SimDisk, rng: random.Random, later: Later) -> None:
    disk.dead = True

    def back() -> None:
        disk.dead = False

    later(rng.randint(1, 60), back)


def _slow(disk: SimDisk, rng: random.Random, later: Later) -> None:
    disk.slow_s = rng.choice([0.01, 1.0, 5.0])

    def well() -> None:
        disk.slow_s = 0.0

    later(rng.randint(5, 200), well)


def _rot(disk: SimDisk, rng: random.Random, later: Later) -> None:
    # At most one superblock of nine rots: without any, the pool rightly takes the disk for blank.
    chunks = [c for c in disk.written_chunks() if c * 4096 >= DATA_START_BYTES]
    chunks = [c for c in chunks if c * 4096 < closing_offset(disk.size_bytes)]
    if rng.random() < 0.3:
        disk.corrupt(rng.randrange(RING_SLOTS) * SUPERBLOCK_BYTES + 16, 512)
    for _ in range(rng.randint(1, 40)):
        if chunks:
            at = rng.choice(chunks) * 4096 + rng.randrange(4096)
            disk.corrupt(at, rng.choice([1, 8, 512, 4096]))


def _misdirected(disk: SimDisk, rng: random.Random, later: Later) -> None:
    disk.misdirected += rng.randint(1, 3)


_PLANTS: dict[str, Callable[[SimDisk, random.Random, Later], None]] = {
    "write once": lambda disk, rng, later: disk.fail_write(rng.randint(1, 3)),
    "writes": lambda disk, rng, later: disk.fail_write(times=None),
    "flush once": lambda disk, rng, later: disk.fail_flush(),
    "flushes": lambda disk, rng, later: disk.fail_flush(times=None),
    "read once": lambda disk, rng, later: disk.fail_read(rng.randint(1, 20)),
    "reads": lambda disk, rng, later: disk.fail_read(times=rng.choice([5, 50, None])),
    "allocate once": lambda disk, rng, later: disk.fail_allocate(error=DeviceError),
    "no space": _no_space,
    "dead": _dead,
    "dead for a while": _dead_for_a_while,
    "cache lost": lambda disk, rng, later: disk.lose_cache(),
    "slow": _slow,
    "rot": _rot,
    "lost write": lambda disk, rng, later: disk.lose_write(rng.randint(1, 4)),
    "misdirected write": _misdirected,
}
