"""A full pool loses nothing, takes deletes and trims, and gets space back."""

import random
from functools import partial

import pytest
import trio

from blockdev.errors import NoSpaceError
from blockdev.simulation.world import SimulatedWorld
from storage.pool import Pool
from tests.crash import model
from tests.crash.harness import (
    MIB,
    ONE,
    TWO_OF_THREE,
    Shape,
    contents,
    live,
    new_world,
    opened,
    recover,
)
from tests.crash.model import BLOCK, History

SHAPES = (
    Shape("one", ONE.copies, ONE.hosts, 16 * MIB),
    Shape("two-of-three", TWO_OF_THREE.copies, TWO_OF_THREE.hosts, 14 * MIB),
)
VOLUME_BYTES = 64 * MIB
WRITE_BLOCKS = 16


class Filler:
    """Fills volumes with random data and flushes now and then, until a write gives NoSpaceError."""

    def __init__(self, history: History, pool: Pool, seed: int) -> None:
        self._history = history
        self._pool = pool
        self._noise = random.Random(seed)

    async def create(self, name: str) -> None:
        self._history.begin(model.create(name, VOLUME_BYTES))
        await self._pool.management.create_volume(name, VOLUME_BYTES)
        self._history.is_durable(len(self._history.steps))

    async def fill(self, name: str, blocks_max: int = VOLUME_BYTES // BLOCK) -> int:
        """Return how many blocks were written before the pool was full."""
        volume = self._pool.open_export(name)
        taken = 0
        try:
            while taken < blocks_max:
                data = [self._noise.randbytes(BLOCK) for _ in range(WRITE_BLOCKS)]
                for i, each in enumerate(data):
                    self._history.begin(model.put_block(name, taken + i, each))
                await volume.write(taken * BLOCK, b"".join(data))
                taken += WRITE_BLOCKS
                if taken % 64 == 0:
                    await self.flush()
        except NoSpaceError:
            pass
        finally:
            await volume.close()
        return taken

    async def flush(self) -> None:
        mark = len(self._history.steps)
        await self._pool.flush()
        self._history.is_durable(mark)

    async def trim(self, name: str, blocks: int) -> None:
        volume = self._pool.open_export(name)
        self._history.begin(model.zero_blocks(name, 0, blocks))
        await volume.trim(0, blocks * BLOCK)
        await self.flush()
        await volume.close()

    async def delete(self, name: str) -> None:
        self._history.begin(model.delete(name))
        await self._pool.management.delete_volume(name)
        self._history.is_durable(len(self._history.steps))


async def fill_up(history: History, pool: Pool, seed: int) -> Filler:
    """Fill 4 MiB of one volume, and the rest of the pool with another."""
    filler = Filler(history, pool, seed)
    await filler.create("old")
    await filler.fill("old", 4 * MIB // BLOCK)
    await filler.create("new")
    taken = await filler.fill("new")
    assert taken * BLOCK > 3 * MIB, "full too early"
    # Part of the refused write may have been taken, and no later step was acknowledged.
    found = await contents(pool)
    count = history.explain(found)
    assert count is not None, history.differences(found)
    del history.steps[count:]
    history.tip = found
    await filler.flush()
    return filler


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("give_back", ["trim", "delete"])
def test_a_full_pool_works_and_gets_space_back(shape: Shape, give_back: str, seed: int) -> None:
    """Goal: at 100 % all acknowledged data is there; trim and delete work; writes resume (R17).

    Method: fill the pool, give back 4 MiB, and write 2 MiB.
    """
    world = new_world(shape, seed)
    history = History()

    async def body() -> None:
        async with opened(world, shape) as pool:
            filler = await fill_up(history, pool, seed)
            assert pool.failure is None
            if give_back == "trim":
                await filler.trim("old", 4 * MIB // BLOCK)
            else:
                await filler.delete("old")
            with trio.fail_after(600):
                await filler.create("again")
                taken = await filler.fill("again", 2 * MIB // BLOCK)
            assert taken * BLOCK >= 2 * MIB, "space did not come back"
            found = await contents(pool)
            assert history.explain(found) is not None, history.differences(found)

    live(world, body)
    assert not recover(world.reboot(), shape, history)


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "cut"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_full_pool_opens_again(shape: Shape, clean: bool) -> None:
    """Goal: a full pool, stopped or cut, opens with all its data and takes a delete.

    Method: open it several times, because each recovery needs a segment of its own.
    """
    world = new_world(shape, 3)
    history = History()

    async def body() -> None:
        async with opened(world, shape) as pool:
            await fill_up(history, pool, 3)
            if not clean:
                world.cut_power()

    assert live(world, body) is not clean
    for _ in range(12):
        world = world.reboot()
        _open_and_maybe_cut(world, shape, history, clean)
    world = world.reboot()
    assert not recover(world, shape, history, partial(_make_room, history))
    assert not recover(world.reboot(), shape, history)


def _open_and_maybe_cut(world: SimulatedWorld, shape: Shape, history: History, clean: bool) -> None:
    async def then(pool: Pool) -> None:
        if not clean:
            world.cut_power()

    recover(world, shape, history, then)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_full_pool_opens_after_any_series_of_crashes(shape: Shape, seed: int) -> None:
    """Goal: no series of crashes during and after recoveries uses up the last free segment.

    Method: fill up and cut; cut each of many openings at some operation; then open, and delete.
    """
    world = new_world(shape, seed)
    history = History()
    coin = random.Random(seed)

    async def body() -> None:
        async with opened(world, shape) as pool:
            await fill_up(history, pool, seed)
            world.cut_power()

    assert live(world, body)
    for _ in range(40):
        world = world.reboot(coin.randrange(1, 60))
        _open_and_maybe_cut(world, shape, history, clean=False)
    world = world.reboot()
    assert not recover(world, shape, history, partial(_make_room, history))


async def _make_room(history: History, pool: Pool) -> None:
    """Delete the old volume and write into a new one."""
    filler = Filler(history, pool, 4)
    await filler.delete("old")
    await filler.create("again")
    await filler.fill("again", MIB // BLOCK)
    await filler.flush()
