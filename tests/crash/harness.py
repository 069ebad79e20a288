"""Runs lives of a pool on simulated disks: each life is one run of trio, ended by a stop or a cut.

Every life has its own mock clock and its own seed for the scheduler, the engine's randomness and
the disks, so one seed gives one run, independent of earlier runs.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from blockdev.errors import DeviceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.pool import MemberDevice, Pool, PoolSettings, create_pool, open_pool
from tests.crash.model import BLOCK, ZERO_BLOCK, History, Image, State, VolumeModel
from tests.sim.deterministic import Body, environment, run

MIB = 1 << 20
SEGMENT_BYTES = MIB
READ_BYTES = MIB
_ZEROES = bytes(READ_BYTES)

SETTINGS = PoolSettings(
    page_cache_bytes=4 * MIB, extent_cache_bytes=MIB, buffer_bytes=8 * MIB,
    flush_interval_s=1.0, checkpoint_interval_s=20.0,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How a pool is made: one host label per member."""

    name: str
    copies: int
    hosts: tuple[str, ...]
    member_bytes: int = 32 * MIB

    def __str__(self) -> str:
        return self.name


ONE = Shape("one", 1, ("a",))
TWO_OF_THREE = Shape("two-of-three", 2, ("a", "b", "c"))
THREE = Shape("three", 3, ("a", "b", "c"))
SHAPES = (ONE, TWO_OF_THREE, THREE)


def members(world: SimulatedWorld, shape: Shape) -> list[MemberDevice]:
    """The disks of a world as members, in order."""
    return [
        MemberDevice(disk, f"disk{i}", host)
        for i, (disk, host) in enumerate(zip(world.disks, shape.hosts, strict=True))
    ]


def live(world: SimulatedWorld, body: Body) -> bool:
    """Run one life; True when the power was cut. Any other error is raised without a group."""
    was_cut = run(world.seed, body)
    assert was_cut == world.was_cut, "the engine swallowed a power cut"
    return was_cut


def new_world(shape: Shape, seed: int) -> SimulatedWorld:
    """Return a world with a new, empty pool; reboot it for each life."""
    world = SimulatedWorld(seed, count_reads=False, checkpoints=True)
    for _ in shape.hosts:
        SimulatedDisk(world, shape.member_bytes, try_reads=bool(seed % 2), garbles=seed % 3 == 0)

    async def make() -> None:
        await create_pool(
            members(world, shape), copies=shape.copies, segment_bytes=SEGMENT_BYTES,
            env=environment(seed),
        )  # fmt: skip

    live(world, make)
    return world.reboot()


@asynccontextmanager
async def opened(
    world: SimulatedWorld, shape: Shape, settings: PoolSettings = SETTINGS, life: int = 0
) -> AsyncIterator[Pool]:
    """Open the pool of a world; `life` gives each opening in one world its own randomness."""
    env = environment((world.seed, life))
    async with open_pool(members(world, shape), settings=settings, env=env) as pool:
        yield pool


async def contents(pool: Pool) -> State:
    """Return all that clients see of a pool: names, sizes, snapshots and every byte."""
    found: State = {}
    for volume in pool.management.volumes():
        model = VolumeModel(await _image(pool, volume.name))
        assert model.head.size_bytes == volume.size_bytes
        for snap in pool.management.snapshots(volume.name):
            model.snapshots[snap.name] = await _image(pool, f"{volume.name}@{snap.name}")
        found[volume.name] = model
    return found


async def _image(pool: Pool, name: str) -> Image:
    device = pool.open_export(name)
    image = Image(device.size_bytes)
    for start in range(0, device.size_bytes, READ_BYTES):
        length = min(READ_BYTES, device.size_bytes - start)
        data = bytes(await device.read(start, length))
        assert len(data) == length
        if data != _ZEROES[:length]:
            for at in range(0, length, BLOCK):
                block = data[at : at + BLOCK]
                if block != ZERO_BLOCK:
                    image.blocks[(start + at) // BLOCK] = block
    await device.close()
    return image


def recover(
    world: SimulatedWorld,
    shape: Shape,
    history: History,
    then: Callable[[Pool], Awaitable[None]] | None = None,
    settings: PoolSettings = SETTINGS,
) -> bool:
    """Open the pool after a power cut, compare it with the history, close it cleanly.

    Every later opening must show the same content, so the history is settled on it. `then`
    goes on in the open pool. True when the power was cut on the way.

    Raises:
        AssertionError: the pool does not open, or no prefix of the history gives its content.
    """
    body = partial(_recover, world, shape, history, then, settings)
    try:
        return live(world, body)
    except DeviceError as error:
        raise AssertionError(f"a pool is not usable after a power cut: {error!r}") from error


async def _recover(
    world: SimulatedWorld, shape: Shape, history: History,
    then: Callable[[Pool], Awaitable[None]] | None, settings: PoolSettings,
) -> None:  # fmt: skip
    async with opened(world, shape, settings) as pool:
        found = await contents(pool)
        count = history.explain(found)
        assert count is not None, f"no prefix explains the pool: {history.differences(found)}"
        history.settle(count)
        if then is not None:
            await then(pool)
