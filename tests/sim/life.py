"""Runs one life of a pool: opens it, compares it with the model, works, takes photos, and ends."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from blockdev.errors import ClosedError, DeviceError
from storage.errors import ForeignMemberError, MissingMemberError
from storage.pool import Pool, PoolSettings, open_pool
from storage.verify.check import check_pool
from tests.crash.harness import MIB
from tests.crash.model import State
from tests.sim import members
from tests.sim.actions import act
from tests.sim.client import Client, Tolerance
from tests.sim.deterministic import environment, run
from tests.sim.disks import Photo, SimWorld, boot
from tests.sim.faults import plant
from tests.sim.look import contents
from tests.sim.members import Attached
from tests.sim.model import Mark, Model, Wrong
from tests.sim.plan import UNREADABLE, Item, LifePlan, Plan

IS_MISSING = re.compile("every member that holds this is missing|attach missing members")

PHOTOS_MAX = 120
"""At so many photos every second one is dropped, and photos are taken half as often."""


def pool_settings(plan: Plan) -> PoolSettings:
    wanted = dict(plan.settings)
    return PoolSettings(
        page_cache_bytes=4 * MIB, extent_cache_bytes=MIB,
        buffer_bytes=int(wanted["buffer_bytes"]),
        flush_interval_s=wanted["flush_interval_s"],
        checkpoint_interval_s=wanted["checkpoint_interval_s"],
        checkpoint_records=int(wanted["checkpoint_records"]),
        checkpoint_commits=int(wanted["checkpoint_commits"]),
    )  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """A moment when the power may go: the disks, and the states that recovery may show."""

    photo: Photo
    mark: Mark


class Life:
    """Runs one life; afterwards `moments` are its crash points, `last` is its end."""

    def __init__(
        self, plan: Plan, life: LifePlan, number: int, world: SimWorld, model: Model, before: Mark
    ):
        self.moments: list[Moment] = []
        self.was_refused = False
        self._plan = plan
        self._life = life
        self._number = number
        self._world = world
        self._model = model
        self._before = before
        self._seen = False
        """Whether the pool was compared with the model; until then `before` bounds its content."""
        self._rng = random.Random(f"life {life.seed}")
        self._gap = 2
        self._photo_at = 1
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._faults = 0

    @property
    def last(self) -> Moment:
        return Moment(self._world.photo(), self._mark())

    def _mark(self) -> Mark:
        return self._model.mark() if self._seen else self._before

    # -- photos and faults, by operations of the devices

    def _watch(self) -> None:
        now = self._world.operations
        if now >= self._photo_at:
            self.moments.append(self.last)
            if len(self.moments) >= PHOTOS_MAX:
                del self.moments[::2]
                self._gap *= 2
            self._photo_at = now + self._rng.randint(1, 2 * self._gap)
        while self._due and self._due[0][0] <= now:
            self._due.pop(0)[2]()
        self._watch_next()

    def _watch_next(self) -> None:
        self._world.watch_at = min([self._photo_at, *(at for at, _, _ in self._due[:1])])

    def _later(self, at: int, what: Callable[[], None]) -> None:
        self._due.append((at, len(self._due) + self._faults, what))
        self._due.sort(key=lambda due: due[:2])

    def _plant(self, item: Item) -> None:
        self._faults += 1

        def later(operations: int, what: Callable[[], None]) -> None:
            self._later(self._world.operations + operations, what)

        plant(self._world, item, later)

    # -- the run

    def run(self) -> None:
        """Run the life. Raises the first violation or error that no fault explains."""
        for item in self._life.faults:
            self._later(item.at, partial(self._plant, item))
        self._world.watch = self._watch
        self._watch_next()
        run(self._life.seed, self._body)
        self._world.watch_at = 1 << 62

    def _attached(self) -> Attached:
        world, shape = self._world, self._plan.shape
        absent = self._life.absent
        if absent is None or self._plan.lying not in (None, absent):
            return members.everybody(world, shape)
        return members.forced(world, shape, absent) or members.everybody(world, shape)

    def _tolerance(self, attached: Attached) -> Tolerance:
        faults = self._life.faults
        weak = {item.member for item in faults} | members.stale(self._world) | attached.absent
        return Tolerance(
            space=any(item.kind == "no space" for item in faults),
            failure=bool(faults) and len(weak) >= self._plan.shape.copies,
            unreadable=any(item.kind in UNREADABLE for item in faults),
            faults=bool(faults),
            rot=self._plan.lying is not None,
        )

    async def _body(self) -> None:
        attached = self._attached()
        tolerance = self._tolerance(attached)
        pool: Pool | None = None
        try:
            async with open_pool(
                attached.members, settings=pool_settings(self._plan),
                env=environment(f"{self._life.seed} {self._number}"), without=attached.without,
            ) as pool:  # fmt: skip
                await self._look(pool)
                await self._work(pool, tolerance)
        except DeviceError as error:
            # Only faults may stop a pool from opening.
            excused = tolerance.failure or (pool is None and self._faults)
            if not excused and not (attached.absent and IS_MISSING.search(str(error))):
                raise
        if pool is None:
            self.was_refused = True
        elif isinstance(pool.failure, ClosedError):
            self._model.is_durable(self._model.tick())
        elif not tolerance.failure and not tolerance.space:
            raise Wrong(f"the pool gave up: {pool.failure!r}")

    async def _look(self, pool: Pool) -> None:
        found = await contents(pool)
        self._model.settle(found, self._model.explain(found, self._before))
        self._seen = True

    async def _work(self, pool: Pool, tolerance: Tolerance) -> None:
        busy: set[str] = set()
        async with trio.open_nursery() as nursery:
            clients = [
                Client(pool, self._model, nursery, tolerance, busy, f"l{self._number}c{number}")
                for number in range(len(self._life.clients))
            ]
            if not self._model.names:
                await act(clients[0], "begin", self._life.seed)
            for client, items in zip(clients, self._life.clients, strict=True):
                nursery.start_soon(self._run_client, client, items)

    @staticmethod
    async def _run_client(client: Client, items: tuple[Item, ...]) -> None:
        for item in items:
            if client.pool.failure is not None:
                return
            await act(client, item.kind, item.seed)


class Probe:
    """Opens the pool after one power cut, and compares its content with the model."""

    def __init__(self, plan: Plan, moment: Moment, seed: int, *, again: int):
        self.crash_points = 1
        self._plan = plan
        self._moment = moment
        self._seed = seed
        self._again = again
        """How many more recoveries in a row are cut, each within the one before."""
        self._rng = random.Random(f"probe {seed}")
        self.degrades = plan.degrades
        """Some data may have fewer copies than it should."""
        self._found: State | None = None
        self._nested: list[tuple[Photo, State | None]] = []

    def run(self) -> int:
        """Open and compare; return the hash of all operations. Raises any violation."""
        world = boot(self._moment.photo, self._seed, traced=True)
        world.pauses_reads = False
        if self._seed % 4:
            for disk in world.disks:
                disk.try_reads = True
        attached = members.choose(world, self._plan.shape, self._rng, self._plan.lying)
        if self._again:
            world.watch_at = self._rng.randint(1, 14 * len(attached.members))
            world.watch = partial(self._take, world)
        try:
            run(self._seed, partial(self._look, world, attached))
        except (MissingMemberError, ForeignMemberError):
            if not attached.refused:
                raise
        except DeviceError as error:
            # Data written while members were missing, and not copied to these members yet.
            if not (attached.absent and self.degrades and IS_MISSING.search(str(error))):
                raise
        else:
            if attached.refused:
                raise Wrong(f"opened without members it counts on: absent={attached.absent}")
        hashed = world.hashed
        for photo, found in self._nested:
            moment = Moment(photo, self._moment.mark)
            probe = _Same if found is not None else Probe
            nested = probe(self._plan, moment, self._rng.getrandbits(32), again=self._again - 1)
            nested.must_be = found
            nested.degrades = self.degrades or bool(attached.absent)
            hashed ^= nested.run()
            self.crash_points += nested.crash_points
        return hashed

    must_be: State | None = None

    def _take(self, world: SimWorld) -> None:
        self._nested.append((world.photo(), self._found))
        world.watch_at = 1 << 62

    async def _look(self, world: SimWorld, attached: Attached) -> None:
        async with open_pool(
            attached.members, settings=pool_settings(self._plan), env=environment(self._seed),
            without=attached.without,
        ) as pool:  # fmt: skip
            found = await contents(pool, holes=self._seed % 4 > 0)
            self._hold(found)
            self._found = found
            world.cut_power()

    def _hold(self, found: State) -> None:
        Model.explain(found, self._moment.mark)


class _Same(Probe):
    """A probe after a cut behind a compared recovery: it must find the content found there."""

    def _hold(self, found: State) -> None:
        if found != self.must_be:
            raise Wrong("the pool is not what it was seen to be after an earlier recovery")


async def check_stopped(world: SimWorld, plan: Plan) -> None:
    """The offline check of a stopped pool finds no damage that cannot be repaired."""
    report = await check_pool(members.everybody(world, plan.shape).members)
    damage = [d for d in report.damage if not d.repairable]
    if damage:
        raise Wrong(f"a check finds damage: {damage[:5]}")
