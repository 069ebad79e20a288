"""A member loses its unflushed writes, as when a remote server restarts, and reports it once."""

import pytest

from blockdev.errors import DeviceError
from blockdev.simulation.power import PowerCut
from blockdev.simulation.world import SimulatedWorld
from storage.members.member import Member
from tests.crash.harness import ONE, TWO_OF_THREE, Shape, live, new_world, opened, recover
from tests.crash.model import History
from tests.crash.workload import Workload

ACTIONS = 16


def lose_at_each(shape: Shape, seeds: range) -> None:
    """Lose a member's cache at operation 1, 2, 3... of a workload. Raises AssertionError."""
    for seed in seeds:
        made = new_world(shape, seed)
        at = 1
        while lose_at(made, shape, seed, at):
            at += 1


def lose_at(made: SimulatedWorld, shape: Shape, seed: int, at: int) -> bool:
    """Lose the cache at one operation, cut the power in the end, and check that all acknowledged
    data is there. False when the workload was over by then. Raises AssertionError.
    """
    world = made.reboot()
    history, count = History(), world.count
    workload = Workload(history, seed)
    lost_at = 1 << 40

    def counting(*, read: bool = False) -> bool:
        cut = count(read=read)
        if world.operations == lost_at and not read:
            world.disks[0].lose_cache()
        return cut

    async def until_the_cut() -> None:
        nonlocal lost_at
        async with opened(world, shape) as pool:
            lost_at = world.operations + at
            await workload.run(pool, ACTIONS)
            await pool.checkpoint()
            world.cut_power()
        raise PowerCut

    world.count = counting  # type: ignore[method-assign]
    try:
        live(world, until_the_cut)
    except DeviceError:
        assert len(world.disks) == 1, f"two good members are left: {at=}"
    try:
        assert not recover(world.reboot(), shape, history)
    except AssertionError as error:
        error.add_note(f"shape={shape} seed={seed} {at=}")
        raise
    return world.operations >= lost_at


@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
@pytest.mark.parametrize("seed", [3, 4])
def test_a_lost_cache_loses_nothing_acknowledged(shape: Shape, seed: int) -> None:
    """Goal: whichever operation gets the error, the content of the cache is written again (R4)."""
    lose_at_each(shape, range(seed, seed + 1))


def test_a_log_that_ignores_lost_caches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: this suite fails for an engine that counts failed flushes only, not lost caches."""

    async def deaf(self: Member, offset: int, data: bytes, *, fua: bool = False) -> None:
        await self.device.write(offset, data, fua=fua)

    monkeypatch.setattr(Member, "write", deaf)
    with pytest.raises(AssertionError):
        lose_at_each(ONE, range(3, 30))
