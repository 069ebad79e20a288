"""Compares a pool with plain dictionaries: random operations in any order, power cuts included.

Rules only note operations; the model of names is certain, as every change of the catalogue is
durable when it returns. At the end all operations are carried out, and `History` knows the bytes
that a power cut may leave. A new operation is a rule that calls `self.do` with an async function.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage.pool import Pool, PoolSettings
from storage.volumes.management import Management
from tests.crash import model
from tests.crash.harness import MIB, Shape
from tests.crash.model import BLOCK, History
from tests.crash.workload import pieces
from tests.sim.deterministic import quiet_and_quick
from tests.sim.pool_model import Action, Session, Snap, Vol, data_of, flattened, put, range_of
from tests.sim.pool_run import Run

STEPS_MIN = 2_000  # in the short form
SHAPES = (Shape("one", 1, ("a",), 24 * MIB), Shape("two-of-three", 2, ("a", "b", "c"), 16 * MIB))
SIZES = (4 * MIB + 64 * BLOCK, MIB, 16 * BLOCK)
"""The first reaches over the end of a map page."""
VOLUMES_MAX, SNAPSHOTS_MAX = 6, 6

indexes = seeds = st.integers(0, 1 << 16)


class Pools(RuleBasedStateMachine):
    """One pool, from its creation on."""

    steps = 0
    """Steps of all machines together."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, Vol] = {}
        self.history = History()
        self.sessions = [Session()]
        self.made = 0

    @initialize(shape=st.sampled_from(SHAPES), seed=seeds, records=st.sampled_from([30, 1_000_000]))
    def begin(self, shape: Shape, seed: int, records: int) -> None:
        self.shape, self.seed = shape, seed
        self.settings = PoolSettings(
            page_cache_bytes=4 * MIB, extent_cache_bytes=MIB, buffer_bytes=8 * MIB,
            checkpoint_interval_s=20.0, checkpoint_records=records,
        )  # fmt: skip

    # -- parts of rules

    def do(self, action: Action) -> None:
        """Note an action, to be carried out after the earlier ones."""
        Pools.steps += 1
        self.sessions[-1].actions.append(action)

    def change(self, step: model.Step, call: Callable[[Management], Awaitable[object]]) -> None:
        """Note a change of the catalogue, which is durable when it returns."""

        async def action(pool: Pool) -> None:
            self.history.begin(step)
            await call(pool.management)
            self.history.is_durable(len(self.history.steps))

        self.do(action)

    def volume(self, index: int) -> str:
        return list(self.names)[index % len(self.names)]

    def snapshots(self) -> list[tuple[str, str]]:
        return [(name, snap) for name, vol in self.names.items() for snap in vol.snaps]

    def new_name(self) -> str:
        self.made += 1
        return f"n{self.made}"

    def _line(self, snap: Snap) -> tuple[int, ...]:
        return (*snap.line, snap.number)

    # -- bytes

    @precondition(lambda self: self.names)
    @rule(index=indexes, seed=seeds, times=st.integers(1, 6))
    def write(self, index: int, seed: int, times: int) -> None:
        name = self.volume(index)
        size = self.names[name].size_bytes

        async def action(pool: Pool) -> None:
            coin = random.Random(seed)
            device = pool.open_export(name)
            for _ in range(times):
                offset, length = range_of(coin, size)
                data = data_of(coin, length)
                for at, piece in pieces(offset, data):
                    self.history.begin(put(name, at, piece))
                await device.write(offset, data)
            await device.close()

        self.do(action)

    @precondition(lambda self: self.names)
    @rule(index=indexes, seed=seeds, everything=st.booleans())
    def trim(self, index: int, seed: int, everything: bool) -> None:
        name = self.volume(index)
        size = self.names[name].size_bytes

        async def action(pool: Pool) -> None:
            offset, length = (0, size) if everything else range_of(random.Random(seed), size)
            first, end = -(-offset // BLOCK), (offset + length) // BLOCK
            device = pool.open_export(name)
            if first < end:
                self.history.begin(model.zero_blocks(name, first, end))
            await device.trim(offset, length)
            await device.close()

        self.do(action)

    @precondition(lambda self: self.names)
    @rule(index=indexes, seed=seeds)
    def read(self, index: int, seed: int) -> None:
        name = self.volume(index)
        size = self.names[name].size_bytes

        async def action(pool: Pool) -> None:
            offset, length = range_of(random.Random(seed), size)
            device = pool.open_export(name)
            found = bytes(await device.read(offset, length))
            await device.close()
            assert found == self.history.tip[name].head.read(offset, length)

        self.do(action)

    # -- volumes

    @precondition(lambda self: len(self.names) < VOLUMES_MAX)
    @rule(size=st.sampled_from(SIZES))
    def create(self, size: int) -> None:
        name = self.new_name()
        self.names[name] = Vol(size)
        self.change(model.create(name, size), lambda manage: manage.create_volume(name, size))

    @precondition(lambda self: self.names)
    @rule(index=indexes)
    def delete(self, index: int) -> None:
        name = self.volume(index)
        del self.names[name]
        self.change(model.delete(name), lambda manage: manage.delete_volume(name, snapshots=True))

    @precondition(lambda self: self.names)
    @rule(index=indexes)
    def rename(self, index: int) -> None:
        name, new = self.volume(index), self.new_name()
        self.names[new] = self.names.pop(name)
        self.change(model.rename(name, new), lambda manage: manage.rename_volume(name, new))

    @precondition(lambda self: self.names)
    @rule(index=indexes, blocks=st.integers(1, 64))
    def grow(self, index: int, blocks: int) -> None:
        name = self.volume(index)
        size = self.names[name].size_bytes = self.names[name].size_bytes + blocks * BLOCK
        self.change(model.resize(name, size), lambda manage: manage.resize_volume(name, size))

    @precondition(lambda self: self.names)
    @rule(index=indexes, blocks=indexes)
    def shrink(self, index: int, blocks: int) -> None:
        name = self.volume(index)
        old = self.names[name].size_bytes
        size = (blocks % (old // BLOCK) + 1) * BLOCK
        self.names[name].size_bytes = size
        zero, cut = model.shrink(name, size)

        async def action(pool: Pool) -> None:
            self.history.begin(zero)
            self.history.begin(cut)
            await pool.management.resize_volume(name, size, shrink=True)
            self.history.is_durable(len(self.history.steps))

        self.do(action)

    # -- snapshots and clones

    def _freeze(self, name: str, snap: str) -> None:
        self.made += 1
        vol = self.names[name]
        vol.snaps[snap] = Snap(self.made, vol.size_bytes, vol.line, vol.unsure)
        vol.line = (*vol.line, self.made)

    @precondition(lambda self: self.names)
    @rule(index=indexes)
    def snapshot(self, index: int) -> None:
        name, snap = self.volume(index), self.new_name()
        if len(self.names[name].snaps) < SNAPSHOTS_MAX:
            self._freeze(name, snap)
            self.change(
                model.snapshot(name, snap), lambda manage: manage.create_snapshot(name, snap)
            )

    @precondition(lambda self: self.names)
    @rule(some=st.sets(indexes, min_size=1, max_size=4))
    def group(self, some: set[int]) -> None:
        names = [n for n in self.names if n in {self.volume(index) for index in some}]
        snap = self.new_name()
        if all(len(self.names[name].snaps) < SNAPSHOTS_MAX for name in names):
            for name in names:
                self._freeze(name, snap)
            self.change(
                model.group(names, snap), lambda manage: manage.create_snapshots(names, snap)
            )

    @precondition(lambda self: self.snapshots())
    @rule(index=indexes)
    def delete_snapshot(self, index: int) -> None:
        found = self.snapshots()
        name, snap = found[index % len(found)]
        del self.names[name].snaps[snap]
        step = model.delete_snapshot(name, snap)
        self.change(step, lambda manage: manage.delete_snapshot(name, snap))

    @precondition(lambda self: self.snapshots())
    @rule(index=indexes)
    def rename_snapshot(self, index: int) -> None:
        found = self.snapshots()
        name, snap = found[index % len(found)]
        new = self.new_name()
        vol = self.names[name]
        vol.snaps = {(new if n == snap else n): each for n, each in vol.snaps.items()}
        step = model.rename_snapshot(name, snap, new)
        self.change(step, lambda manage: manage.rename_snapshot(name, snap, new))

    @precondition(lambda self: self.snapshots())
    @rule(index=indexes)
    def rollback(self, index: int) -> None:
        found = self.snapshots()
        name, snap = found[index % len(found)]
        vol = self.names[name]
        record = vol.snaps[snap]
        vol.size_bytes, vol.line, vol.unsure = (
            record.size_bytes, self._line(record), record.unsure,
        )  # fmt: skip
        size = record.size_bytes

        def apply(state: model.State) -> None:
            model.rollback(name, snap).apply(state)
            assert state[name].head.size_bytes == size

        step = model.Step(f"rollback {name}@{snap}", apply)
        self.change(step, lambda manage: manage.rollback(name, snap))

    @precondition(lambda self: self.snapshots() and len(self.names) < VOLUMES_MAX)
    @rule(index=indexes)
    def clone(self, index: int) -> None:
        found = self.snapshots()
        name, snap = found[index % len(found)]
        new = self.new_name()
        record = self.names[name].snaps[snap]
        self.names[new] = Vol(record.size_bytes, self._line(record), record.unsure)
        self.change(model.clone(name, snap, new), lambda manage: manage.clone(name, snap, new))

    @precondition(lambda self: self.names and len(self.names) < VOLUMES_MAX)
    @rule(index=indexes)
    def fork(self, index: int) -> None:
        name, new = self.volume(index), self.new_name()
        vol = self.names[name]
        vol.line = (*vol.line, self.made)
        self.names[new] = replace(vol, snaps={})
        self.change(model.fork(name, new), lambda manage: manage.clone(name, None, new))

    @precondition(lambda self: self.promotable())
    @rule(index=indexes)
    def promote(self, index: int) -> None:
        found = self.promotable()
        name, source, moving = found[index % len(found)]
        theirs = self.names[source].snaps
        moved = {snap: theirs.pop(snap) for snap in moving}
        self.names[name].snaps = {**moved, **self.names[name].snaps}
        self.change(model.promote(name, source, moving), lambda manage: manage.promote(name))

    @precondition(lambda self: self.names)
    @rule(index=indexes)
    def flatten(self, index: int) -> None:
        name = self.volume(index)
        own = {snap.number for snap in self.names[name].snaps.values()}
        named = {snap.number for vol in self.names.values() for snap in vol.snaps.values()}
        unnamed = {n for each in self.parts(name) for n in each.line} - named
        for other in self.names:
            for each in self.parts(other):
                first = next((i for i, number in enumerate(each.line) if number in own), None)
                if first is not None:
                    each.line = each.line[first:]
                    each.unsure |= bool((named - own) & set(each.line))
                elif other == name:
                    each.line, each.unsure = (), False
                elif unnamed & set(each.line):
                    each.unsure = True
        self.do(partial(flattened, name))

    def parts(self, name: str) -> list[Vol | Snap]:
        """A volume and its snapshots: each of them has a line of ancestors."""
        return [self.names[name], *self.names[name].snaps.values()]

    def promotable(self) -> list[tuple[str, str, list[str]]]:
        """(volume, other, snapshots) of each volume whose ancestors are snapshots of one other."""
        found = []
        for name, vol in self.names.items():
            shared = {
                source: [s for s, snap in other.snaps.items() if snap.number in vol.line]
                for source, other in self.names.items()
                if source != name
            }
            sources = [source for source, moving in shared.items() if moving]
            if vol.unsure:
                continue
            if len(sources) == 1 and not vol.snaps.keys() & set(shared[sources[0]]):
                found.append((name, sources[0], shared[sources[0]]))
        return found

    # -- durability and time

    @rule()
    def flush(self) -> None:
        async def action(pool: Pool) -> None:
            mark = len(self.history.steps)
            await pool.flush()
            self.history.is_durable(mark)

        self.do(action)

    @rule()
    def checkpoint(self) -> None:
        self.do(lambda pool: pool.checkpoint())

    @rule(segments=st.sampled_from([1, 3, 100]))
    def clean(self, segments: int) -> None:
        async def action(pool: Pool) -> None:
            await pool.cleaner.round(segments)

        self.do(action)

    @rule(seconds=st.sampled_from([0.1, 3, 30]))
    def wait(self, seconds: float) -> None:
        async def action(pool: Pool) -> None:
            await trio.sleep(seconds)

        self.do(action)

    @rule()
    def stop_and_open(self) -> None:
        Pools.steps += 1
        self.sessions.append(Session())

    @rule(seed=seeds)
    def power_cut(self, seed: int) -> None:
        Pools.steps += 1
        self.sessions[-1].cut = seed
        self.sessions.append(Session())

    # -- carrying it out

    def teardown(self) -> None:
        if hasattr(self, "shape"):
            Run(self.shape, self.seed, self.settings, self.sessions, self.history).carry_out()


def _run(examples: int, steps: int, *, derandomize: bool) -> None:
    wanted = settings(
        max_examples=examples, stateful_step_count=steps, derandomize=derandomize, deadline=None,
        suppress_health_check=list(HealthCheck), database=None,
    )  # fmt: skip
    with quiet_and_quick():
        run_state_machine_as_test(Pools, settings=wanted)


def test_a_pool_is_what_plain_dictionaries_say() -> None:
    """Goal: after any operations in any order, with power cuts between them, the content is right,
    the offline check finds no damage, every counter is exact, and all space comes back in the end.
    """
    Pools.steps = 0
    _run(70, 60, derandomize=True)
    assert Pools.steps >= STEPS_MIN


@pytest.mark.long
def test_a_pool_is_what_plain_dictionaries_say_long() -> None:
    """Goal: as in the short test, with other operations each time."""
    _run(2_000, 100, derandomize=False)
