"""Power cuts while a pool under writes gets another member or a larger one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from blockdev.errors import DeviceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.errors import PoolError
from storage.format.superblock import Superblock
from storage.members.member import Member, read_superblock
from storage.pool import MemberDevice, Pool, open_pool
from storage.verify.check import check_pool
from tests.crash.harness import (
    MIB,
    SETTINGS,
    Shape,
    contents,
    live,
    new_world,
)
from tests.crash.model import History
from tests.crash.workload import Workload
from tests.sim.deterministic import environment

SMALL = Shape("small", 1, ("a",), 12 * MIB)
PAIR = Shape("pair", 2, ("a", "b"), 16 * MIB)
ADDED_BYTES = 16 * MIB
MORE_BYTES = 10 * MIB

Grow = Callable[[Pool, SimulatedWorld], Awaitable[None]]


async def offered(world: SimulatedWorld, shape: Shape) -> list[MemberDevice]:
    """Return the disks that a daemon offers: the pool's first disks, and any later disk that has a
    superblock."""
    found = []
    for i, disk in enumerate(world.disks):
        if i < len(shape.hosts) or await read_superblock(disk) is not None:
            found.append(as_member(world, i))
    return found


def as_member(world: SimulatedWorld, index: int) -> MemberDevice:
    return MemberDevice(world.disks[index], f"disk{index}", "abcd"[index])


@asynccontextmanager
async def opened(world: SimulatedWorld, shape: Shape, life: int) -> AsyncIterator[Pool]:
    env = environment((world.seed, life))
    async with open_pool(await offered(world, shape), settings=SETTINGS, env=env) as pool:
        yield pool


async def add(pool: Pool, world: SimulatedWorld) -> None:
    """Add the last disk unless it is a member."""
    if len(pool.info().members) < len(world.disks):
        await pool.growth.add(as_member(world, len(world.disks) - 1))


async def grow(pool: Pool, world: SimulatedWorld) -> None:
    """Grow the first member to the size of its disk unless that is done."""
    member = pool.info().members[0]
    if member.size_bytes < world.disks[0].size_bytes:
        await pool.growth.grow(member.uuid)


def grown_so_far(pool: Pool, world: SimulatedWorld, was_offered: int) -> str:
    known = len(pool.info().members)
    if was_offered > known:
        return "left aside"
    larger = pool.info().members[0].size_bytes == world.disks[0].size_bytes
    return "done" if known == len(world.disks) and larger else "not begun"


async def one_life(
    world: SimulatedWorld, shape: Shape, history: History, action: Grow, name: str, seen: set[str]
) -> None:
    """Compare all contents with the history, work, grow while working, and work on."""
    count_offered = len(await offered(world, shape))
    async with opened(world, shape, 0) as pool:
        seen.add(grown_so_far(pool, world, count_offered))
        found = await contents(pool)
        count = history.explain(found)
        assert count is not None, history.differences(found)
        history.settle(count)
        workload = Workload(history, name)
        await workload.run(pool, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(action, pool, world)
            await workload.run(pool, 3)
        assert grown_so_far(pool, world, 0) == "done"
        await workload.run(pool, 2)
    history.is_durable(len(history.steps))


async def no_damage(world: SimulatedWorld, shape: Shape) -> None:
    report = await check_pool(await offered(world, shape))
    assert not report.damage, report.damage[:5]


def sweep(made: SimulatedWorld, shape: Shape, seed: int, action: Grow, step: int) -> set[str]:
    """Cut at operation 1, 1 + step...; afterwards the pool opens, grows and is undamaged. Return
    how far the growth had come after the cuts, as `grown_so_far` names it."""
    cut_at = 1
    seen: set[str] = set()
    while True:
        world = made.reboot(cut_at)
        history = History()
        was_cut = live(world, partial(one_life, world, shape, history, action, f"{seed}", set()))
        for again in range(2):
            world = world.reboot(outcome=cut_at)
            life = partial(one_life, world, shape, history, action, f"{seed}-{again}", seen)
            try:
                assert not live(world, life)
            except (DeviceError, AssertionError) as error:
                error.add_note(f"{shape=!s} {seed=} {cut_at=} {again=}")
                raise
        world = world.reboot()
        live(world, partial(no_damage, world, shape))
        if not was_cut:
            return seen
        cut_at += step


def world_with_a_blank_disk(shape: Shape, seed: int) -> SimulatedWorld:
    world = new_world(shape, seed)
    SimulatedDisk(world, ADDED_BYTES)
    return world.reboot()


def world_with_a_larger_disk(shape: Shape, seed: int) -> SimulatedWorld:
    world = new_world(shape, seed)
    world.disks[0].size_bytes += MORE_BYTES
    return world.reboot()


@pytest.mark.parametrize(("shape", "seed", "step"), [(SMALL, 1, 1), (PAIR, 2, 2)], ids=str)
def test_power_cut_while_a_member_is_added(shape: Shape, seed: int, step: int) -> None:
    """Goal: after a power cut at any operation the pool opens with all durable data; the device is
    a member or not, and adding it again makes it one.
    """
    seen = sweep(world_with_a_blank_disk(shape, seed), shape, seed, add, step)
    assert seen == {"not begun", "left aside", "done"}


@pytest.mark.parametrize(("shape", "seed", "step"), [(SMALL, 3, 1), (PAIR, 4, 2)], ids=str)
def test_power_cut_while_a_member_is_grown(shape: Shape, seed: int, step: int) -> None:
    """Goal: after a power cut at any operation the pool opens with all durable data, and with the
    old or the new size.
    """
    seen = sweep(world_with_a_larger_disk(shape, seed), shape, seed, grow, step)
    assert seen == {"not begun", "done"}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1600, 1612))
@pytest.mark.parametrize("shape", [SMALL, PAIR], ids=str)
def test_power_cut_while_a_pool_grows_long(shape: Shape, seed: int) -> None:
    """Goal and method: as in the short tests, at every operation."""
    sweep(world_with_a_blank_disk(shape, seed), shape, seed, add, 1)
    sweep(world_with_a_larger_disk(shape, seed), shape, seed, grow, 1)


def test_a_pool_that_names_a_member_before_its_own_superblock_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: the sweep fails for a pool whose superblocks name a new member that has none itself."""
    write = Member.write_superblock

    async def skips(self: Member, sb: Superblock) -> None:
        if not sb.joining:
            await write(self, sb)

    monkeypatch.setattr(Member, "write_superblock", skips)
    with pytest.raises(PoolError, match="missing"):
        sweep(world_with_a_blank_disk(SMALL, 1), SMALL, 1, add, 1)
