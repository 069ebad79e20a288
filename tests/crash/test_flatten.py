"""Power cuts while clones are flattened: get copies of inherited blocks and lose their parents."""

from functools import partial

import pytest
import trio

from blockdev.simulation.world import SimulatedWorld
from storage.pool import Pool
from tests.crash import model
from tests.crash.harness import MIB, ONE, SHAPES, THREE, Shape, live, new_world, opened, recover
from tests.crash.model import BLOCK, History
from tests.crash.sweep import Sweep, find_no_damage
from tests.crash.workload import FLATTENING

SIZE = 5 * MIB
"""Two map pages."""
LONG_SEEDS = range(1000, 1020)


@pytest.mark.parametrize(("shape", "seed", "step"), [(ONE, 3, 2), (ONE, 8, 2), (THREE, 4, 9)])
def test_power_cut_while_clones_are_flattened(shape: Shape, seed: int, step: int) -> None:
    """Goal: as in `test_power_cut`, while clones are flattened in the background, also in the
    recovered pool. Rules R6, R8, R12.
    """
    Sweep(shape, seed, actions=(24, 16), weights=FLATTENING).run(step=step)


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG_SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_while_clones_are_flattened_long(shape: Shape, seed: int) -> None:
    """Goal and method: as in the short test, at every operation."""
    Sweep(shape, seed, actions=(40, 30), recovery_cuts=2, weights=FLATTENING).run()


class Life:
    """A clone with snapshots of its own is flattened, then its origin is deleted."""

    def __init__(self, history: History) -> None:
        self.history = history

    async def run(self, pool: Pool) -> None:
        await self._durably(model.create("v", SIZE), pool.management.create_volume("v", SIZE))
        for block in (*range(0, 9), 700, *range(1020, 1030)):
            await self._write(pool, "v", block, b"origin")
        await self._durably(model.snapshot("v", "s"), pool.management.create_snapshot("v", "s"))
        await self._durably(model.clone("v", "s", "c"), pool.management.clone("v", "s", "c"))
        for number, blocks in enumerate(((3, 1022), (4, 900))):
            for block in blocks:
                await self._write(pool, "c", block, b"clone")
            name = f"t{number}"
            await self._durably(
                model.snapshot("c", name), pool.management.create_snapshot("c", name)
            )
            await pool.checkpoint()
        await pool.management.flatten("c")
        await self._write(pool, "c", 5, b"meanwhile")
        await self.finish(pool)

    async def finish(self, pool: Pool) -> None:
        """Wait for the flatten and delete the origin, which a recovered pool must also do."""
        while "c" in self.history.tip and pool.management.volume("c").flattening is not None:
            await trio.sleep(1)
        if "c" in self.history.tip and pool.management.volume("c").origin is None:
            if "v" in self.history.tip:
                step, call = model.delete("v"), pool.management.delete_volume("v", snapshots=True)
                await self._durably(step, call)
            for _ in range(4):
                await pool.checkpoint()
            assert all(node.parent in (None, "c") for node in pool.management.tree())
        await self._write(pool, "c", 6, b"after")
        await pool.flush()
        self.history.is_durable(len(self.history.steps))

    async def _write(self, pool: Pool, name: str, block: int, word: bytes) -> None:
        if name in self.history.tip:
            data = (word + b"-%d-" % block).ljust(64, b".") * (BLOCK // 64)
            self.history.begin(model.put_block(name, block, data))
            device = pool.open_export(name)
            await device.write(block * BLOCK, data)
            await device.close()

    async def _durably(self, step, call) -> None:  # type: ignore[no-untyped-def]
        self.history.begin(step)
        mark = len(self.history.steps)
        await call
        self.history.is_durable(mark)


def test_the_origin_can_be_deleted_after_any_cut() -> None:
    """Goal: after a cut anywhere, the pool goes on to flatten the clone; then its origin is deleted
    and its space is reused, and the clone and its snapshots read as before.

    Method: cut one life at every device operation, and its recovery at one of the first operations
    in turn.
    """
    made = new_world(ONE, 5)
    cut_at = 0
    was_cut = True
    while was_cut:
        cut_at += 1
        world = made.reboot(cut_at)
        history = History()
        was_cut = live(world, partial(_first_life, world, history))
        again = world.reboot(cut_at % 23 + 1, outcome=cut_at)
        try:
            if recover(again, ONE, history, Life(history).finish):
                again = again.reboot(outcome=cut_at + 1)
                assert not recover(again, ONE, history, Life(history).finish)
            again = again.reboot()
            assert not recover(again, ONE, history)
            again = again.reboot()
            live(again, partial(find_no_damage, again, ONE))
        except AssertionError as error:
            error.add_note(f"{cut_at=}")
            raise
    assert cut_at > 50


async def _first_life(world: SimulatedWorld, history: History) -> None:
    async with opened(world, ONE) as pool:
        await Life(history).run(pool)
