"""A daemon that was paused while another daemon took its pool does no harm when it resumes.

The members refuse the daemon that holds them no more, as a lock, a reservation or a remote host
does. The paused daemon then stops; all that it acknowledged is there, and it changes nothing else.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio
from typing_extensions import Buffer

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError, TakenError
from blockdev.simulation.world import SimulatedWorld
from storage.info import MemberState
from storage.members.member import Member
from storage.members.roster import Roster
from storage.pool import MemberDevice, open_pool
from tests.crash.harness import (
    ONE,
    SETTINGS,
    TWO_OF_THREE,
    Shape,
    contents,
    live,
    members,
    new_world,
    opened,
    recover,
)
from tests.crash.model import History
from tests.crash.sweep import find_no_damage
from tests.crash.workload import Workload
from tests.sim.deterministic import environment

ACTIONS, ACTIONS_OF_THE_OTHER = 14, 8

T = TypeVar("T")


class Lease:
    """One daemon's hold on the members: they refuse it from one of its operations on, all at once
    or one after another. With `pauses`, that operation waits for `goes_on` first."""

    def __init__(self, first_refused: int, *, apart: int = 0, pauses: bool = False) -> None:
        self.paused = trio.Event()
        self.goes_on = trio.Event()
        self.was_refused = False
        self._first_refused = first_refused
        self._apart = apart
        self._pauses = pauses
        self._operations = 0
        self._under_way = 0

    async def do(self, member: int, operation: Callable[[], Awaitable[T]]) -> T:
        """Carry out one operation of the daemon on a member. Raises TakenError."""
        self._operations += 1
        if self._operations >= self._first_refused + member * self._apart:
            self.was_refused = True
            self.paused.set()
            if self._pauses:
                await self.goes_on.wait()
            raise TakenError("another daemon holds the device")
        self._under_way += 1
        try:
            return await operation()
        finally:
            self._under_way -= 1

    async def is_over(self) -> None:
        """Wait until the daemon is refused, and its operations under way have ended."""
        await self.paused.wait()
        while self._under_way:
            await trio.sleep(0.001)


class Held(BlockDevice):
    """A disk that carries out the operations of one daemon while its lease lasts."""

    def __init__(self, disk: BlockDevice, lease: Lease, member: int) -> None:
        self._disk = disk
        self._do = functools.partial(lease.do, member)
        self.size_bytes = disk.size_bytes
        self.block_bytes = disk.block_bytes
        self.physical_bytes = disk.physical_bytes

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._do(functools.partial(self._disk.read, offset, length))

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._do(functools.partial(self._disk.write, offset, data, fua=fua))

    async def write_zeroes(
        self, offset: int, length: int, *, fua: bool = False, no_hole: bool = False,
        fast: bool = False,
    ) -> None:  # fmt: skip
        zero = functools.partial(self._disk.write_zeroes, fua=fua, no_hole=no_hole, fast=fast)
        await self._do(functools.partial(zero, offset, length))

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._do(functools.partial(self._disk.trim, offset, length, fua=fua))

    async def flush(self) -> None:
        await self._do(self._disk.flush)

    async def allocate(self, offset: int, length: int) -> None:
        await self._do(functools.partial(self._disk.allocate, offset, length))

    async def close(self) -> None:
        """Close nothing: the disk belongs to the other daemon by now."""


class Takeover:
    """One daemon works; another takes its pool and works, while the first is refused."""

    def __init__(self, made: SimulatedWorld, shape: Shape, seed: int, lease: Lease) -> None:
        self.world = made.reboot()
        self.history = History()
        """The history that the next opening must agree with."""
        self.was_taken = False
        self._shape, self._seed = shape, seed
        self._lease = lease
        self._first = self.history
        self._first_ended = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work)
            nursery.start_soon(self._take)

    async def run_one_by_one(self) -> None:
        """Run the daemons without a pause: the first ends before the other begins."""
        await self._work()
        await self._take()

    async def _work(self) -> None:
        held = []
        for i, each in enumerate(members(self.world, self._shape)):
            device = Held(self.world.disks[i], self._lease, i)
            held.append(MemberDevice(device, each.name, each.host))
        refused = False
        try:
            env = environment((self._seed, "first"))
            async with open_pool(held, settings=SETTINGS, env=env) as pool:
                await Workload(self._first, self._seed).run(pool, ACTIONS)
            self._first.is_durable(len(self._first.steps))
        except* DeviceError:
            refused = True
        assert refused == self._lease.was_refused, "it went on with a pool that is another's"
        self._first_ended.set()
        self._lease.paused.set()

    async def _take(self) -> None:
        await self._lease.is_over()
        if self._first_ended.is_set() and not self._lease.was_refused:
            return
        self.was_taken = True
        history = self._first.copy()
        async with opened(self.world, self._shape, life=1) as pool:
            states = {member.state for member in pool.info().members}
            assert states == {MemberState.IN_SYNC}, "a member is called stale for a refusal"
            found = await contents(pool)
            count = history.explain(found)
            assert count is not None, history.differences(found)
            history.settle(count)
            await Workload(history, f"{self._seed}-other").run(pool, ACTIONS_OF_THE_OTHER)
            await pool.cleaner.round()
            await pool.checkpoint()
            await pool.checkpoint()
        history.is_durable(len(history.steps))
        self._lease.goes_on.set()
        await self._first_ended.wait()
        assert self._first.floor <= count, "it acknowledged what nobody will find"
        self.history = history


def take_over_at_each(shape: Shape, seed: int, *, pauses: bool) -> int:
    """Take a pool from a daemon at one operation after another; return how often it was taken."""
    made = new_world(shape, seed)
    taken = 0
    while True:
        at = seed + taken * 2 * len(shape.hosts)
        lease = Lease(at, apart=0 if pauses else 1 + taken % 12, pauses=pauses)
        takeover = Takeover(made, shape, seed, lease)
        try:
            assert not live(takeover.world, takeover.run if pauses else takeover.run_one_by_one)
            assert not recover(takeover.world.reboot(outcome=1), shape, takeover.history)
            world = takeover.world.reboot()
            live(world, functools.partial(find_no_damage, world, shape))
        except AssertionError as error:
            error.add_note(f"shape={shape} seed={seed} {at=} {pauses=}")
            raise
        if not takeover.was_taken:
            return taken
        taken += 1


@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_daemon_that_wakes_up_after_a_takeover_harms_nothing(shape: Shape, seed: int) -> None:
    """Goal: a refused daemon acknowledges nothing more and changes nothing on the members (R16)."""
    assert take_over_at_each(shape, seed, pauses=True) > 10


@pytest.mark.parametrize("seed", [3, 4])
def test_a_daemon_that_is_refused_calls_no_member_stale(seed: int) -> None:
    """Goal: a refusal is no failure of a member; a refused daemon stops at once (R16)."""
    assert take_over_at_each(TWO_OF_THREE, seed, pauses=False) > 10


def test_a_refusal_that_is_taken_for_a_failure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: this suite fails for an engine that goes on without the member that refuses it."""
    honest = Roster.fail

    def fails(self: Roster, member: Member, since: int, error: DeviceError) -> None:
        honest(self, member, since, DeviceError(str(error)))

    monkeypatch.setattr(Roster, "fail", fails)
    with pytest.raises(AssertionError, match=r"called stale|went on with a pool"):
        take_over_at_each(TWO_OF_THREE, 3, pauses=False)
