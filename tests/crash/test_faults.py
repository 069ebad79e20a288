"""Writes and flushes of a member fail, once or for ever, at every place of a workload.

All acknowledged data is there afterwards, also after a power cut. When another member has a copy,
no request of a client fails.
"""

import contextlib
import random
from collections.abc import Callable

import pytest
import trio

from blockdev.errors import DeviceError, NoSpaceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.power import PowerCut
from blockdev.simulation.world import SimulatedWorld
from storage.log.committer import Log
from storage.members.segment_io import Failure
from storage.pool import Pool
from storage.volumes.volume import Volume
from tests.crash.harness import (
    MIB,
    ONE,
    THREE,
    TWO_OF_THREE,
    Shape,
    live,
    new_world,
    opened,
    recover,
)
from tests.crash.model import BLOCK, History
from tests.crash.workload import Workload

BROKEN = 1
"""The member that fails, of three."""
ACTIONS = 18

Plant = Callable[[SimulatedDisk, int], None]

FAULTS: dict[str, tuple[str, Plant]] = {
    "write-once": ("write", lambda disk, at: disk.fail_write(at)),
    "writes-for-ever": ("write", lambda disk, at: disk.fail_write(at, times=None)),
    "flush-once": ("flush", lambda disk, at: disk.fail_flush(at)),
    "flushes-for-ever": ("flush", lambda disk, at: disk.fail_flush(at, times=None)),
    "allocate-once": ("allocate", lambda disk, at: disk.fail_allocate(at, error=DeviceError)),
    "no-space-once": ("allocate", lambda disk, at: disk.fail_allocate(at)),
}


def calls(disk: SimulatedDisk, kind: str) -> int:
    return disk._calls[kind]


class FaultSweep:
    """Runs one workload many times, with the fault one call later each time."""

    def __init__(self, shape: Shape, seed: int, fault: str) -> None:
        self.shape = shape
        self.seed = seed
        self.kind, self.plant = FAULTS[fault]
        self._made = new_world(shape, seed)
        self.survived = 0
        self.gave_up = 0

    def run(self, step: int = 1) -> None:
        at = 1
        while self.fail_at(at):
            at += step

    def fail_at(self, at: int) -> bool:
        """Fail call number `at`, cut the power in the end; False when there was no such call."""
        world = self._made.reboot()
        disk = world.disks[BROKEN % len(world.disks)]
        calls_before = 0
        history = History()
        workload = Workload(history, self.seed)

        async def until_the_cut() -> None:
            nonlocal calls_before
            async with opened(world, self.shape) as pool:
                calls_before = calls(disk, self.kind)
                self.plant(disk, at)
                await workload.run(pool, ACTIONS)
                world.cut_power()
            raise PowerCut  # because a full pool closes without a device operation

        try:
            live(world, until_the_cut)
            self.survived += 1
        except DeviceError:
            assert len(world.disks) == 1, f"two good members are left: {self.kind} {at=}"
            self.gave_up += 1
        try:
            for outcome in range(2):
                assert not recover(world.reboot(outcome=outcome), self.shape, history.copy())
        except AssertionError as error:
            error.add_note(f"shape={self.shape} seed={self.seed} fault={self.kind} {at=}")
            raise
        return calls(disk, self.kind) - calls_before >= at


@pytest.mark.parametrize(
    ("shape", "fault"),
    # With three copies on three members, one full file system makes the pool full.
    [(s, f) for s in (TWO_OF_THREE, THREE) for f in FAULTS if (s, f) != (THREE, "no-space-once")],
    ids=str,
)
def test_a_failing_member_of_three_fails_no_request_and_loses_nothing(
    shape: Shape, fault: str
) -> None:
    """Goal: with a copy elsewhere no write and no flush fails, and nothing is lost (R4, R5).

    Method: rerun one workload, failing the first, second, third... call on one member, once
    or from then on; cut the power in the end, open, and compare the contents with the history.
    """
    sweep = FaultSweep(shape, 5, fault)
    sweep.run()
    assert sweep.survived
    assert not sweep.gave_up


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [3, 4])
def test_a_failing_only_member_loses_nothing_acknowledged(seed: int, fault: str) -> None:
    """Goal: data that a failed flush dropped is written again elsewhere (R4), or the pool fails;
    all acknowledged data is there either way.

    Method: as for three members, on a pool of one member, which may refuse to go on.
    """
    sweep = FaultSweep(ONE, seed, fault)
    sweep.run()
    if fault in ("write-once", "flush-once"):
        assert sweep.survived > sweep.gave_up, "gives up too easily"


def test_a_retried_flush_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: this suite fails for an engine that believes the retry of a failed flush (R4)."""

    async def retries(self: Log) -> None:
        members = [m for m in self._roster.in_sync() if m.index in self._losses]
        failures: list[Failure] = await self._segment_io.flush(members)
        if failures:
            await self._segment_io.flush(members)
        self._losses.clear()
        self._settle()

    monkeypatch.setattr(Log, "_make_durable", retries)
    with pytest.raises(AssertionError):
        fail_flushes_over_seeds()


def fail_flushes_over_seeds() -> None:
    for seed in range(3, 20):
        FaultSweep(ONE, seed, "flush-once").run()


def test_a_full_file_system_does_not_fail_its_member() -> None:
    """Goal: a full file system gives NoSpaceError, fails no member, and writes resume.

    Method: `allocate` answers ENOSPC for a while on the only member; write until a write fails.
    """
    world = new_world(ONE, 8)
    history = History()

    async def body() -> None:
        async with opened(world, ONE) as pool:
            await Workload(history, 8).run(pool, 0)
            world.disks[0].fail_allocate(1, times=None)
            volume = pool.open_export("root")
            with pytest.raises(NoSpaceError):
                await _fill(pool, volume, 8)
            assert pool.failure is None
            _forget_faults(world)
            await _until_it_works(pool)
            assert pool.failure is None
            await volume.close()

    live(world, body)


async def _fill(pool: Pool, volume: Volume, rounds: int) -> None:
    """Overwrite one MiB with random data again and again."""
    noise = random.Random(1)
    for _ in range(rounds):
        for block in range(0, 256, 32):
            await volume.write(block * BLOCK, noise.randbytes(32 * BLOCK))
        await pool.flush()


def _forget_faults(world: SimulatedWorld) -> None:
    for disk in world.disks:
        for planned in disk._faults.values():
            planned.clear()


async def _until_it_works(pool: Pool) -> None:
    with trio.fail_after(600):
        while True:
            with contextlib.suppress(NoSpaceError):
                await pool.management.create_volume("after", MIB)
                return
            await trio.sleep(1)
