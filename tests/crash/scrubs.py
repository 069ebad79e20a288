"""Helpers of the tests of scrubs."""

from collections.abc import Awaitable, Callable

from blockdev.simulation.world import SimulatedWorld
from storage.format.entry import Location, unpack
from storage.pool import Pool
from storage.throttle import Limits, Throttle
from storage.verify.scrub_pass import Outcome, ScrubPass, Stage
from tests.crash.harness import Shape, contents, live, opened
from tests.crash.model import History


async def scrub(pool: Pool, rate: int = 0) -> ScrubPass:
    done = pool.scrubber.new_pass()
    await pool.scrubber.run(done, Throttle(Limits(bytes_per_s=rate, burst_s=0.0)))
    assert done.stage is Stage.DONE
    return done


def kinds(done: ScrubPass) -> set[tuple[str, Outcome]]:
    return {(finding.what, finding.outcome) for finding in done.findings}


async def holds_all(pool: Pool, history: History) -> None:
    found = await contents(pool)
    assert history.explain(found) is not None, history.differences(found)


def in_pool(world: SimulatedWorld, shape: Shape, body: Callable[[Pool], Awaitable[None]]) -> None:
    async def run() -> None:
        async with opened(world, shape) as pool:
            await body(pool)

    live(world, run)


def first_extent(pool: Pool) -> Location:
    """Return the location of the first stored block of the volume "root"."""
    for page in pool.blockmap.layers[pool.durable.volumes["root"].head].pages.values():
        for a, b in page.entries.tolist():
            if unpack(a, b).kind > 1:
                return unpack(a, b)
    raise AssertionError("nothing is stored")
