"""Carries out the noted operations of a model on a simulated pool, and compares the contents."""

from dataclasses import dataclass, field
from functools import partial

from blockdev.simulation.world import SimulatedWorld
from storage.pool import Pool, PoolSettings
from tests.crash.harness import Shape, live, new_world, opened
from tests.crash.model import History
from tests.crash.sweep import find_no_damage
from tests.sim.deterministic import quiet_and_quick
from tests.sim.look import contents
from tests.sim.pool_model import Session, settle


@dataclass
class Run:
    """One life of a pool: sessions, each ended by a stop or by a power cut."""

    shape: Shape
    seed: int
    settings: PoolSettings
    sessions: list[Session]
    history: History
    free: list[int] = field(default_factory=list)
    """Free bytes after all volumes were deleted: in a new pool, and in this one."""

    def carry_out(self) -> None:
        """Run all sessions, check the pool offline, and give all its space back."""
        with quiet_and_quick():
            world = new_world(self.shape, self.seed)
            for number, session in enumerate(self.sessions):
                was_cut = live(world, partial(self._live, world, session, number))
                assert was_cut == (session.cut is not None)
                world = world.reboot(outcome=session.cut or 0)
            live(world, partial(find_no_damage, world, self.shape))
            live(world, partial(self._live, world, Session(), len(self.sessions)))
            world = world.reboot()
            fresh = new_world(self.shape, self.seed)
            live(fresh, partial(self._give_all_back, fresh))
            live(world, partial(self._give_all_back, world))
            assert self.free[1] == self.free[0], "space is lost"
            world = world.reboot()
            live(world, partial(find_no_damage, world, self.shape))

    async def _live(self, world: SimulatedWorld, session: Session, number: int) -> None:
        async with opened(world, self.shape, self.settings, number) as pool:
            await self._look(pool)
            for action in session.actions:
                await action(pool)
            await self._look_at_tip(pool)
            if session.cut is not None:
                world.cut_power()
        self.history.is_durable(len(self.history.steps))

    async def _look(self, pool: Pool) -> None:
        found = await contents(pool)
        count = self.history.explain(found)
        assert count is not None, self.history.differences(found)
        self.history.settle(count)

    async def _look_at_tip(self, pool: Pool) -> None:
        found = await contents(pool, holes=True)
        assert found == self.history.tip, self.history.differences(found)

    async def _give_all_back(self, world: SimulatedWorld) -> None:
        """Delete all volumes, and note the free bytes: they must be those of a new pool."""
        async with opened(world, self.shape, self.settings, -1) as pool:
            for volume in pool.management.volumes():
                await pool.management.delete_volume(volume.name, snapshots=True)
            await settle(pool)
            self.free.append(pool.info().free_bytes)
            assert len(pool.live.layers) == 0
