"""Cuts the power at operations of one workload and checks every promise after each cut."""

import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from blockdev.simulation.world import SimulatedWorld
from storage.pool import Pool
from storage.verify.check import check_pool
from tests.crash.harness import Shape, live, members, new_world, recover
from tests.crash.model import History
from tests.crash.moments import Moment, moments
from tests.crash.workload import Workload, sessions

ACTIONS = (14, 10)
ACTIONS_AFTERWARDS = 6


class Sweep:
    """All cuts of one seeded workload on one shape of pool.

    Args:
        workload: the class of the workload.
        recovery_cuts: how many places of the first recovery are cut, for each cut of the
            workload; None cuts every one.
    """

    def __init__(
        self, shape: Shape, seed: int, *, actions: tuple[int, ...] = ACTIONS,
        workload: type[Workload] = Workload, recovery_cuts: int | None = 1,
        weights: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        self._weights = weights
        self.shape = shape
        self.seed = seed
        self._actions = actions
        self._workload = workload
        self._recovery_cuts = recovery_cuts
        self._made = new_world(shape, seed)
        self.crashes = 0

    def run(self, step: int = 1, start: int = 1) -> None:
        """Run the life once; check a cut at operation `start`, at every `step`-th operation after
        it, and the life without a cut."""
        world, history = self._made.reboot(), History()
        life = self._life(world, history)
        for moment in moments(world, life, history, start=start, step=step):
            self._check(moment)

    def run_cutting(self, step: int = 1, start: int = 1) -> None:
        """As `run`, but rerun the life for each cut, which is raised inside the engine."""
        cut_at = start
        while self.cut(cut_at):
            cut_at += step

    def cut(self, cut_at: int) -> bool:
        """Cut at one operation and check; False when the workload completed before it."""
        world, history = self._made.reboot(cut_at), History()
        was_cut = live(world, self._life(world, history))
        self._check(Moment(cut_at, world, history, was_cut))
        return was_cut

    def _life(self, world: SimulatedWorld, history: History) -> Callable[[], Awaitable[None]]:
        workload = self._workload(history, self.seed, self._weights)
        return sessions(world, self.shape, workload, self._actions)

    def _check(self, moment: Moment) -> None:
        cut_at = moment.operation
        try:
            coin = random.Random(f"{self.seed} {cut_at}")
            self._recover_every_way(moment.world, moment.history, coin)
        except AssertionError as error:
            error.add_note(f"shape={self.shape} seed={self.seed} {cut_at=}")
            raise

    def _recover_every_way(
        self, world: SimulatedWorld, history: History, coin: random.Random
    ) -> None:
        for first_cut in self._places(coin):
            known = history.copy()
            crashed = world.reboot(first_cut, outcome=coin.randrange(1000))
            self.crashes += 1
            if not recover(crashed, self.shape, known):
                self._go_on(crashed, known, coin)
                return
            again = crashed.reboot(coin.randint(1, first_cut + 4), outcome=coin.randrange(1000))
            if recover(again, self.shape, known):
                self.crashes += 1
                again = again.reboot(outcome=coin.randrange(1000))
                assert not recover(again, self.shape, known)
            self._go_on(again, known, coin)

    def _places(self, coin: random.Random) -> Iterator[int]:
        if self._recovery_cuts is None:
            place = 1
            while True:
                yield place
                place += 1
        for _ in range(self._recovery_cuts):
            # A pool of one member takes about 8 operations to open, of three about 24, and as
            # many to close.
            yield coin.randint(1, 16 * len(self.shape.hosts))

    def _go_on(self, world: SimulatedWorld, history: History, coin: random.Random) -> None:
        """Write more, stop cleanly or not, and check that recovery finds what was flushed."""
        world = world.reboot()
        workload = Workload(history, f"{self.seed}-afterwards", self._weights)

        async def more(pool: Pool) -> None:
            await workload.run(pool, ACTIONS_AFTERWARDS)
            mark = len(history.steps)
            await pool.flush()
            history.is_durable(mark)
            if coin.random() < 0.5:
                world.cut_power()

        recover(world, self.shape, history, more)
        world = world.reboot(outcome=coin.randrange(1000))
        assert not recover(world, self.shape, history)
        world = world.reboot()
        live(world, partial(find_no_damage, world, self.shape))


async def find_no_damage(world: SimulatedWorld, shape: Shape) -> None:
    """The offline check of a stopped pool, over every copy, finds nothing."""
    report = await check_pool(members(world, shape))
    assert not report.damage, f"a check finds damage: {report.damage[:5]}"
