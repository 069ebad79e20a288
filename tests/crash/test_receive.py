"""Power cuts at every operation of receiving a snapshot."""

import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from blockdev.errors import DeviceError
from blockdev.simulation.world import SimulatedWorld
from storage.pool import Pool
from storage.transfer import receive as receive_module
from storage.transfer.receive import Receiving
from tests.crash.harness import MIB, ONE, TWO_OF_THREE, Shape, live, new_world, opened
from tests.crash.sweep import find_no_damage
from tests.unit.storage import pools
from tests.unit.storage.streams import receive, sent
from tests.unit.storage.transfer.test_transfers import content

BLOCK = 4096
PARTIAL = "v+receiving"
PIECE_BYTES = 20_000
SIZE_BYTES = 6 * MIB


class Source:
    """The sending pool, in memory that no power cut affects."""

    def __init__(self, seed: int) -> None:
        self._coin = random.Random(seed)
        self._sent: dict[tuple[str | None, ...], bytes] = {}

    async def make(self) -> None:
        self.members = await pools.new_members()
        async with pools.opened(self.members) as pool:
            await pool.management.create_volume("v", SIZE_BYTES)
            for _ in range(20):
                await self._write_somewhere(pool)
            await pools.write(pool, "v", 5 * MIB, b"text" * 4 * BLOCK)
            await pool.management.create_snapshot("v", "one")
            self.one = await content(pool, "v")
            for _ in range(20):
                await self._write_somewhere(pool)
            device = pool.open_export("v")
            await device.trim(3 * BLOCK, 20 * BLOCK)
            await device.close()
            await pool.management.create_snapshot("v", "two")
            self.two = await content(pool, "v")

    async def _write_somewhere(self, pool: Pool) -> None:
        at = self._coin.randrange(SIZE_BYTES // BLOCK - 8) * BLOCK
        await pools.write(pool, "v", at, self._coin.randbytes(self._coin.choice([1, 8]) * BLOCK))

    async def stream(self, name: str, since: str | None, token: str | None = None) -> bytes:
        wanted = (name, since, token)
        if wanted not in self._sent:
            async with pools.opened(self.members) as pool:
                self._sent[wanted] = await sent(pool, name, since=since, resume=token)
        return self._sent[wanted]


class Crash:
    """One stream received by a pool in one world, cut at one operation.

    `whole`: the first snapshot is received, else the difference to the second.
    """

    def __init__(self, shape: Shape, seed: int, *, whole: bool) -> None:
        self.shape, self.seed, self.whole = shape, seed, whole
        self.source = Source(seed)
        world = new_world(shape, seed)
        live(world, self._prepare(world))
        self._made = world.reboot()
        self.interrupted = 0

    def _prepare(self, world: SimulatedWorld) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            await self.source.make()
            if not self.whole:
                async with opened(world, self.shape) as pool:
                    await receive(pool, await self.source.stream("v@one", None), "v")

        return body

    async def _stream(self, token: str | None) -> bytes:
        if self.whole:
            return await self.source.stream("v@one", None, token)
        return await self.source.stream("v@two", "v@one", token)

    @property
    def _goal(self) -> tuple[str, bytes]:
        return ("one", self.source.one) if self.whole else ("two", self.source.two)

    def cut(self, cut_at: int) -> bool:
        """Cut at one operation, recover, resume and check; False when the receive ended first."""
        world = self._made.reboot(cut_at)
        done: list[bool] = []

        async def receives() -> None:
            async with opened(world, self.shape) as pool:
                stream = await self._stream(None)
                receiving = pool.transfers.receive("v")
                for turn, start in enumerate(range(0, len(stream), PIECE_BYTES)):
                    await receiving.feed(stream[start : start + PIECE_BYTES])
                    if turn % 5 == 3:
                        await pool.checkpoint()
                await receiving.finish()
                done.append(True)
                await receiving.close()

        was_cut = live(world, receives)
        world = world.reboot(outcome=cut_at)
        try:
            live(world, partial(self._go_on, world, bool(done)))
        except DeviceError as error:
            raise AssertionError(f"a pool is not usable after a power cut: {error!r}") from error
        world = world.reboot()
        live(world, partial(self._look_again, world))
        live(world, partial(find_no_damage, world, self.shape))
        return was_cut

    async def _go_on(self, world: SimulatedWorld, done: bool) -> None:
        async with opened(world, self.shape, life=1) as pool:
            name, goal = self._goal
            listed = {v.name: v for v in pool.management.volumes()}
            snapshots = [s.name for s in pool.management.snapshots("v")] if "v" in listed else []
            if name in snapshots:
                assert PARTIAL not in listed
                return
            assert not done, "what was acknowledged is there"
            if self.whole:
                assert "v" not in listed
            else:
                assert snapshots == ["one"]
                assert await content(pool, "v") == self.source.one
            token = None
            if PARTIAL in listed:
                token = await self._check_arrived(pool, goal)
            await receive(pool, await self._stream(token), "v")

    async def _check_arrived(self, pool: Pool, goal: bytes) -> str:
        """Check that all data before the noted position is there; return the resume token."""
        info = pool.management.volume(PARTIAL).receiving
        assert info is not None
        device = pool.exports.open_arrival(PARTIAL)
        found = bytes(await device.read(0, device.size_bytes))
        await device.close()
        assert found[: info.position_bytes] == goal[: info.position_bytes]
        self.interrupted += bool(info.position_bytes)
        return info.token

    async def _look_again(self, world: SimulatedWorld) -> None:
        async with opened(world, self.shape, life=2) as pool:
            name, goal = self._goal
            assert [v.name for v in pool.management.volumes()] == ["v"]
            assert await content(pool, f"v@{name}") == goal
            assert await content(pool, "v") == goal
            if not self.whole:
                assert await content(pool, "v@one") == self.source.one


@pytest.fixture(autouse=True)
def notes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive_module, "NOTE_BYTES", 4 * BLOCK)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "difference"])
def test_power_cut_at_every_operation(whole: bool) -> None:
    """Goal: after a power cut at any instant of a receive, the snapshot is there whole or not at
    all, the volume is unchanged, and all data before the noted position has arrived; resuming
    from there completes the snapshot.

    Method: cut at device operation 1, 2, 3... until the receive completes; compare the contents,
    resume, compare again, check.
    """
    crash = Crash(ONE, 3, whole=whole)
    cut_at = 1
    while crash.cut(cut_at):
        cut_at += 1
    assert cut_at > 30
    assert crash.interrupted > 10


def test_power_cuts_with_copies() -> None:
    """Goal and method: as above, at every fourth operation."""
    crash = Crash(TWO_OF_THREE, 4, whole=False)
    cut_at = 1
    while crash.cut(cut_at):
        cut_at += 4
    assert crash.interrupted > 5


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 30))
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "difference"])
def test_power_cut_at_every_operation_long(seed: int, whole: bool) -> None:
    """Goal and method: as in the short test, with other seeds."""
    crash = Crash(ONE, seed, whole=whole)
    cut_at = 1
    while crash.cut(cut_at):
        cut_at += 1


def test_a_note_ahead_of_the_data_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the test fails when a note names a position beyond the written data."""
    honest = Receiving._note

    async def eager(self: Receiving, position: int) -> None:
        await honest(self, position + 16 * BLOCK)

    monkeypatch.setattr(Receiving, "_note", eager)
    with pytest.raises(AssertionError):
        test_power_cut_at_every_operation(False)
