"""Opens a pool with some of its members only."""

from collections.abc import Sequence
from functools import partial
from uuid import UUID

from blockdev.simulation.world import SimulatedWorld
from storage.pool import MemberDevice, open_pool
from tests.crash.harness import SETTINGS, TWO_OF_THREE, contents, live, new_world
from tests.crash.model import History
from tests.crash.workload import Workload, sessions
from tests.sim.deterministic import environment


def world_with_data(seed: int) -> tuple[SimulatedWorld, History]:
    """Return a world with a pool of three members and two copies, cleanly stopped."""
    world = new_world(TWO_OF_THREE, seed)
    history = History()
    live(world, sessions(world, TWO_OF_THREE, Workload(history, seed), (12,)))
    return world.reboot(), history


async def open_some(
    chosen: Sequence[MemberDevice], history: History | None, without: Sequence[UUID] = ()
) -> None:
    """Open the pool with these members only; compare its contents with the history, if given."""
    env = environment([each.name for each in chosen])
    async with open_pool(chosen, settings=SETTINGS, env=env, without=without) as pool:
        if history is not None:
            found = await contents(pool)
            assert history.explain(found) is not None, history.differences(found)


def run(world: SimulatedWorld, chosen: Sequence[MemberDevice], *arguments: object) -> None:
    live(world, partial(open_some, chosen, *arguments))  # type: ignore[arg-type]
