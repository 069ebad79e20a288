"""Makes pools to be damaged, stopped cleanly or by a power cut, damages them, and reads them."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.pool import Pool
from tests.crash.harness import MIB, Shape, live, new_world, opened
from tests.crash.model import BLOCK, ZERO_BLOCK, History, State
from tests.crash.workload import Workload, sessions

ONE = Shape("one", 1, ("a",), 24 * MIB)
TWO = Shape("two", 2, ("a", "b"), 24 * MIB)
CHUNK_BYTES = 4096
READ_BYTES = 64 * BLOCK


def stopped_world(shape: Shape, seed: int, actions: int = 30) -> tuple[SimulatedWorld, History]:
    """Return a pool with volumes, snapshots and clones, cleanly stopped."""
    world = new_world(shape, seed)
    history = History()
    assert not live(world, sessions(world, shape, Workload(history, seed), (actions, actions // 3)))
    return world.reboot(), history


def cut_world(shape: Shape, seed: int, actions: int = 30) -> tuple[SimulatedWorld, History]:
    """Return such a pool whose power was cut while it worked."""
    world = new_world(shape, seed)
    history = History()

    async def body() -> None:
        async with opened(world, shape) as pool:
            await Workload(history, seed).run(pool, actions)
            world.cut_power()

    assert live(world, body)
    return world.reboot(), history


def overwrite(disk: SimulatedDisk, offset: int, data: bytes) -> None:
    """Overwrite any bytes of a disk without an operation, as silent damage does."""
    for content in (disk._durable, disk._visible):
        content.write(offset, data)


def written(disk: SimulatedDisk) -> list[int]:
    """Return the offset of every 4 KiB that was written."""
    return [chunk * CHUNK_BYTES for chunk in sorted(disk._durable._chunks)]


Past = dict[str, dict[int, set[bytes]]]


def past(history: History) -> Past:
    """Return every content that each block of each export ever had, zeroes left out."""
    found: Past = {}
    state: State = {}
    for step in history.steps:
        step.apply(state)
        for export, blocks in exports(state).items():
            known = found.setdefault(export, {})
            for block, data in blocks.items():
                known.setdefault(block, set()).add(data)
    return found


def present(history: History) -> Past:
    """Return the one content that each block of each export has in the end."""
    return {
        export: {block: {data} for block, data in blocks.items()}
        for export, blocks in exports(history.tip).items()
    }


def exports(state: State) -> dict[str, dict[int, bytes]]:
    found = {}
    for name, model in state.items():
        found[name] = model.head.blocks
        for snap, image in model.snapshots.items():
            found[f"{name}@{snap}"] = image.blocks
    return found


@dataclass
class Tally:
    """Counts the results of openings and reads of many damaged images."""

    unopened: int = 0
    right: int = 0
    refused: int = 0
    messages: set[str] = field(default_factory=set)


async def read_every_block(
    pool: Pool, known: Past, tally: Tally, *, zeroes: bool
) -> None:  # fmt: skip
    """Read all exports and check that each block has a known content or gives an error. With
    `zeroes`, a block of zeroes is always right, because it may not have been written yet."""
    names = [volume.name for volume in pool.management.volumes()]
    names += [f"{snap.volume}@{snap.name}" for snap in pool.management.snapshots()]
    for name in names:
        device = pool.open_export(name)
        for at in range(0, device.size_bytes, READ_BYTES):
            for block, data in await _read(device, at, tally):
                wanted = known.get(name, {}).get(block, {ZERO_BLOCK})
                good = data in wanted or (zeroes and data == ZERO_BLOCK)
                assert good, f"{name}[{block}] reads wrong: {data[:16].hex()}"
                tally.right += 1
        await device.close()


async def _read(device: BlockDevice, offset: int, tally: Tally) -> list[tuple[int, bytes]]:
    """Read some blocks at once, or one by one if that fails; return (block, bytes) of each read."""
    length = min(READ_BYTES, device.size_bytes - offset)
    with suppress(DeviceError):
        return _blocks(offset, bytes(await device.read(offset, length)))
    found = []
    for at in range(offset, offset + length, BLOCK):
        try:
            found += _blocks(at, bytes(await device.read(at, BLOCK)))
        except DeviceError as error:
            tally.refused += 1
            tally.messages.add(str(error).split(":")[0])
    return found


def _blocks(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    first = offset // BLOCK
    return [(first + i, data[i * BLOCK : (i + 1) * BLOCK]) for i in range(len(data) // BLOCK)]


@contextmanager
def replaced(owner: object, name: str, value: Callable[..., object]) -> Iterator[None]:
    """Replace an attribute within the block."""
    honest = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, honest)


def any_damage(rng: random.Random, disk: SimulatedDisk) -> None:
    """Damage one written place: flip a bit, or write noise, zeroes or bytes of another place."""
    places = written(disk)
    at = rng.choice(places) + rng.randrange(CHUNK_BYTES)
    length = min(rng.choice([1, 1, 8, 512, 4096, 20_000]), disk.size_bytes - at)
    kind = rng.randrange(4)
    if kind == 0:
        byte = disk._durable.read(at, 1)[0]
        data = bytes([byte ^ 1 << rng.randrange(8)])
    elif kind == 1:
        data = rng.randbytes(length)
    elif kind == 2:
        data = bytes(length)
    else:
        data = disk._durable.read(min(rng.choice(places), disk.size_bytes - length), length)
    overwrite(disk, at, data)
