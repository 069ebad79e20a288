"""Seeds of the simulated pool: acknowledged data survives, and every read is right.

`python -m tests.sim.run --help` runs more of them; each failure names the command that repeats it.
"""

from collections.abc import Iterable

import pytest

from tests.sim.actions import WEIGHTS
from tests.sim.plan import FAULTS, LIES, make_plan
from tests.sim.run import Job, run_job

FIRST = 10_000_006
SLICES, SEEDS_PER_SLICE = 10, 5
LONG_SLICES, LONG_CRASH_POINTS = 20, 5_000
"""Slices and crash points in each: 100,000 crash points in all."""

REGRESSIONS: dict[str, tuple[int, str | None]] = {
    "a member that missed another's return is no split pool": (18, "three"),
    "and neither when the next daemon reached others": (66, "three"),
    "the log goes on where no member is attached": (368, "two"),
    "a cache is lost, and a checkpoint hears of it, not the log": (5000325, None),
    "the only good member stumbles as the other one returns": (5000379, None),
    "the log goes on where a recovery without the other member left it": (6000413, None),
    "a member fails while a checkpoint is written, and comes back": (5000426, None),
    "those that a stale member was in sync with have failed since": (20000045, None),
    "a layer is merged while it is cut off": (45000023, None),
    "a flattening is a step behind as the pool goes down": (40000270, None),
    "the disk that has the end of the log dies as it is opened": (20000167, None),
    "the end of the log is on a disk that fails, and the other one is gone": (60000146, None),
}
"""Seeds that found a bug with the workload of their time; each bug also has a test of its own
beside the code that was wrong."""


def hold(seeds: Iterable[int], shape: str | None = None, crash_points: int = 1 << 30) -> int:
    """Run seeds until there were so many crash points; return the number of crash points."""
    points = 0
    for seed in seeds:
        outcome, again = run_job(Job(seed, shape, 1.0, shrinks=False))
        assert not outcome.violation, f"{outcome.violation}\n  {again}"
        points += outcome.crash_points
        if points >= crash_points:
            break
    return points


@pytest.mark.parametrize("part", range(SLICES))
def test_every_crash_of_every_seed_is_explained(part: int) -> None:
    """Goal: with several clients, failing and lying devices, power cuts at any operation and again
    in the recovery, and missing members, all flushed data is there and no read is wrong.

    Method: see `tests.sim.simulation`. The model decides which content each read and each recovery
    may show.
    """
    first = FIRST + part * SEEDS_PER_SLICE
    assert hold(range(first, first + SEEDS_PER_SLICE)) > SEEDS_PER_SLICE * 20


@pytest.mark.parametrize(("seed", "shape"), REGRESSIONS.values(), ids=[*REGRESSIONS])
def test_seeds_that_failed_once_pass(seed: int, shape: str | None) -> None:
    """Goal: bugs that were fixed stay fixed."""
    hold([seed], shape)


def test_plans_have_everything_in_them() -> None:
    """Goal: the seeds of the short test plant every fault and take every action at least once."""
    plans = [make_plan(seed, WEIGHTS) for seed in range(FIRST, FIRST + SLICES * SEEDS_PER_SLICE)]
    kinds = {item.kind for plan in plans for item in plan.items()}
    assert kinds >= FAULTS.keys() | LIES.keys()
    assert kinds >= {kind for kind, weight in WEIGHTS.items() if weight}


@pytest.mark.long
@pytest.mark.parametrize("part", range(LONG_SLICES))
def test_every_crash_of_many_seeds_is_explained(part: int) -> None:
    """Goal and method: as in the short test, with other seeds and 100,000 crash points in all."""
    first = FIRST + (part + 1) * 1_000_000
    seeds = range(first, first + 1_000_000)
    assert hold(seeds, crash_points=LONG_CRASH_POINTS) >= LONG_CRASH_POINTS
