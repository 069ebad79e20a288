"""Power cuts at every operation of a workload, and of the recovery after it."""

import pytest

from tests.crash.harness import ONE, SHAPES, THREE, TWO_OF_THREE, Shape
from tests.crash.sweep import Sweep

SEEDS = {ONE: range(1, 13), TWO_OF_THREE: range(1, 5), THREE: range(1, 4)}
"""Failing seeds join these."""
CASES = [(shape, seed) for shape in SHAPES for seed in SEEDS[shape]]
LONG_SEEDS = range(1000, 1030)


@pytest.mark.parametrize(("shape", "seed"), CASES, ids=str)
def test_power_cut_at_every_operation(shape: Shape, seed: int) -> None:
    """Goal: after a power cut at any instant, the whole pool is what one prefix of the
    acknowledged steps gives, one that has all that was durable; and it stays that.

    Method: rerun one seeded workload, cutting power at device operation 1, 2, 3... until it
    completes. Open what is left, cut the recovery too, twice in a row, at places chosen by
    the seed; hold all volumes, snapshots and bytes against the history; write more, stop,
    cleanly or not, and look again. At the end the offline check finds no damage.
    """
    Sweep(shape, seed).run()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_at_every_operation_of_the_recovery(shape: Shape) -> None:
    """Goal: a recovery may be cut anywhere, and the next one still finds everything.

    Method: as above, but for a few cuts of the workload every operation of the first
    recovery is cut, and a second recovery somewhere.
    """
    Sweep(shape, 77, recovery_cuts=None).run(step=17 * len(shape.hosts), start=5)


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG_SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_at_every_operation_long(shape: Shape, seed: int) -> None:
    """Goal and method: as above, with a longer workload and more cuts of the recovery."""
    Sweep(shape, seed, actions=(40, 30), recovery_cuts=3).run()
