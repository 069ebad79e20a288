"""A pool filled many times loses nothing, never stalls, and takes writes into freed space."""

import copy
import random
from functools import partial

import pytest
import trio

from blockdev.errors import NoSpaceError
from blockdev.simulation.world import SimulatedWorld
from storage.pool import Pool
from storage.volumes.volume import Volume
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
from tests.crash.model import BLOCK, History, State, Step
from tests.crash.sweep import find_no_damage

SHAPES = (
    Shape("one", ONE.copies, ONE.hosts, 20 * MIB),
    Shape("two-of-three", TWO_OF_THREE.copies, TWO_OF_THREE.hosts, 16 * MIB),
)
VOLUME_BLOCKS = 4096
VOLUMES_MAX = 3
SNAPSHOTS_MAX = 2
FLUSH_EVERY = 48
RECOVERS_WITHIN_S = 600.0
"""Seconds of the mock clock in which a waiting write must end."""
SLACK_BLOCKS = 640
"""Blocks that were given back and may not be writable again: the free rest of the open segments of
log, map and moved blocks, two and a half segments at worst. Much of so small a pool."""
OPERATIONS_OF_A_ROUND = 300
"""Device operations of one disk in one round, roughly; the power cut is drawn from a few rounds."""


class Squeeze:
    """One life of a pool that is driven to ENOSPC; the history notes every step.

    Blocks are written one by one, so that each write is either taken or refused as a whole.
    """

    def __init__(self, history: History, pool: Pool, seed: object) -> None:
        self._history = history
        self._pool = pool
        self._rng = random.Random(f"squeeze {seed}")
        self._seed = seed
        self._names = 0
        self.refusals = 0

    async def round(self) -> None:
        """Fill up, read, give space back, and check that it can be written again."""
        if len(self._history.tip) < VOLUMES_MAX and self._rng.random() < 0.5:
            await self._create()
        await self._fill()
        await self._read_some()
        action = self._rng.choice(["trim", "trim", "zero", "snapshot", "unsnapshot", "delete"])
        with trio.fail_after(RECOVERS_WITHIN_S):
            await getattr(self, f"_{action}")()
            await self._read_some()

    # -- filling

    async def _fill(self) -> None:
        """Write anywhere until the pool is full, and once more: it must refuse again."""
        refused_before = self.refusals
        while self.refusals - refused_before < 2:
            name = self._any_volume()
            device = self._pool.open_export(name)
            first = self._rng.randrange(VOLUME_BLOCKS)
            await self._write(name, device, first, self._rng.choice([1, 8, 60, 250]))
            await device.close()

    async def _write(self, name: str, device: Volume, first: int, count: int) -> int:
        """Write blocks until one is refused; return how many were taken."""
        for taken in range(count):
            block = (first + taken) % VOLUME_BLOCKS
            data = self._rng.randbytes(BLOCK)
            step = model.put_block(name, block, data)
            self._history.begin(step)
            before = len(self._history.steps)
            try:
                if not device.try_write(block * BLOCK, data):
                    with trio.fail_after(RECOVERS_WITHIN_S):
                        await device.write(block * BLOCK, data)
            except NoSpaceError:
                # The write was refused as a whole: no part of it may ever be visible.
                assert len(self._history.steps) == before
                self._take_back()
                self.refusals += 1
                return taken
            if taken % FLUSH_EVERY == 0:
                await self._flush()
        return count

    def _take_back(self) -> None:
        self._history.steps.pop()
        self._history.tip = self._replayed()

    def _replayed(self) -> State:
        state: State = {}
        for step in self._history.steps:
            step.apply(state)
        return state

    async def _flush(self) -> None:
        mark = len(self._history.steps)
        await self._pool.flush()
        self._history.is_durable(mark)

    # -- giving back

    async def _trim(self) -> None:
        await self._give_back(zeroes=False)

    async def _zero(self) -> None:
        await self._give_back(zeroes=True)

    async def _give_back(self, *, zeroes: bool) -> None:
        """Trim or zero part of a volume; without snapshots as many blocks can be written again."""
        name = self._any_volume()
        head = self._history.tip[name].head
        first = self._rng.randrange(VOLUME_BLOCKS)
        end = min(VOLUME_BLOCKS, first + self._rng.choice([200, 1000, VOLUME_BLOCKS]))
        gone = sum(1 for block in head.blocks if first <= block < end)
        device = self._pool.open_export(name)
        self._history.begin(model.zero_blocks(name, first, end))
        give = device.write_zeroes if zeroes else device.trim
        await give(first * BLOCK, (end - first) * BLOCK)
        if not any(volume.snapshots for volume in self._history.tip.values()):
            wanted = gone - SLACK_BLOCKS
            taken = await self._write(name, device, first, max(0, wanted))
            assert taken >= wanted, f"given back {gone}, got {taken}"
        await device.close()
        await self._flush()

    async def _snapshot(self) -> None:
        name = self._any_volume()
        if len(self._history.tip[name].snapshots) < SNAPSHOTS_MAX:
            snapshot = self._new_name("s")
            step = model.snapshot(name, snapshot)
            await self._durably(step, self._pool.management.create_snapshot(name, snapshot))

    async def _unsnapshot(self) -> None:
        found = [(v, s) for v, each in self._history.tip.items() for s in each.snapshots]
        if found:
            name, snapshot = self._rng.choice(found)
            step = model.delete_snapshot(name, snapshot)
            await self._durably(step, self._pool.management.delete_snapshot(name, snapshot))

    async def _delete(self) -> None:
        name = self._any_volume()
        held = len(self._history.tip[name].head.blocks)
        step = model.delete(name)
        await self._durably(step, self._pool.management.delete_volume(name, snapshots=True))
        fresh = await self._create()
        device = self._pool.open_export(fresh)
        wanted = held - SLACK_BLOCKS
        taken = await self._write(fresh, device, 0, max(0, wanted))
        await device.close()
        assert taken >= wanted, f"deleted {held}, got {taken}"

    async def _create(self) -> str:
        name = self._new_name("v")
        size_bytes = VOLUME_BLOCKS * BLOCK
        step = model.create(name, size_bytes)
        await self._durably(step, self._pool.management.create_volume(name, size_bytes))
        return name

    async def _durably(self, step: Step, operation: object) -> None:
        self._history.begin(step)
        mark = len(self._history.steps)
        await operation  # type: ignore[misc]
        self._history.is_durable(mark)

    # -- looking

    async def _read_some(self) -> None:
        for name in list(self._history.tip):
            device = self._pool.open_export(name)
            for _ in range(5):
                block = self._rng.randrange(VOLUME_BLOCKS - 64)
                found = bytes(await device.read(block * BLOCK, 64 * BLOCK))
                wanted = self._history.tip[name].head.read(block * BLOCK, 64 * BLOCK)
                assert found == wanted, f"{name} reads wrong near block {block}"
            await device.close()

    def _any_volume(self) -> str:
        return self._rng.choice(list(self._history.tip))

    def _new_name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}-{self._seed}"


def settled(found: State) -> History:
    """Return a history that begins with the state found in a pool."""
    history = History()
    base = copy.deepcopy(found)
    history.begin(Step("base", lambda state: state.update(copy.deepcopy(base))))
    history.is_durable(1)
    return history


def squeeze(shape: Shape, seed: int, lives: int, rounds: int) -> int:
    """Run so many lives of so many rounds, most ended by a power cut; return the refused writes."""
    world = new_world(shape, seed)
    coin = random.Random(f"lives {seed}")
    history = History()
    refusals = 0
    for number in range(lives):
        usual = OPERATIONS_OF_A_ROUND * rounds * len(shape.hosts)
        world = world.reboot(coin.choice([None, coin.randint(usual // 3, usual), usual]))
        refused: list[int] = []
        live(world, partial(_life, world, shape, history, rounds, f"{seed}.{number}", refused))
        refusals += sum(refused)
        world = world.reboot()
        seen: list[State] = []

        async def look(pool: Pool, seen: list[State] = seen) -> None:
            seen.append(await contents(pool))

        assert not recover(world, shape, history, look)
        history = settled(seen[0])
        world = world.reboot()
        live(world, partial(find_no_damage, world, shape))
    return refusals


async def _life(
    world: SimulatedWorld, shape: Shape, history: History, rounds: int, seed: str,
    refused: list[int],
) -> None:  # fmt: skip
    async with opened(world, shape) as pool:
        squeezing = Squeeze(history, pool, seed)
        if not history.tip:
            await squeezing._create()
        try:
            for _ in range(rounds):
                await squeezing.round()
        finally:
            refused.append(squeezing.refusals)
    history.is_durable(len(history.steps))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pool_driven_to_enospc_again_and_again(shape: Shape, seed: int) -> None:
    """Goal: nothing is lost, no write waits for ever, and every recovery of a full pool works.

    Method: write blocks anywhere until writes are refused, then trim, zero, delete volumes or
    snapshots, or make snapshots; write into the freed space. Lives end by a stop or a power cut at
    any operation; then all durable data is there, the check is clean, and the next life begins.
    """
    assert squeeze(shape, seed, lives=4, rounds=2) > 6


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1700, 1720))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pool_driven_to_enospc_again_and_again_long(shape: Shape, seed: int) -> None:
    """Goal and method: as in the short test, for longer."""
    assert squeeze(shape, seed, lives=12, rounds=5) > 50
