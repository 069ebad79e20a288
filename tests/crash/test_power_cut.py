"""Power cuts at every operation of a workload, and of the recovery after it."""

from typing import Any

import pytest

from storage.checkpoint import relocate
from storage.checkpoint.metadata_writer import MetaWriter
from storage.checkpoint.relocate import Relocator
from tests.crash.harness import ONE, SEGMENT_BYTES, SHAPES, THREE, TWO_OF_THREE, Shape
from tests.crash.sweep import Sweep
from tests.crash.workload import CHECKPOINTS, CLEANING

SEEDS = {ONE: range(1, 13), TWO_OF_THREE: range(1, 5), THREE: range(1, 4)}
"""Seeds per shape; add seeds that failed."""
CASES = [(shape, seed) for shape in SHAPES for seed in SEEDS[shape]]
LONG_SEEDS = range(1000, 1030)


@pytest.mark.parametrize(("shape", "seed"), CASES, ids=str)
def test_power_cut_at_every_operation(shape: Shape, seed: int) -> None:
    """Goal: after a power cut at any instant, the pool holds the result of one prefix of the steps,
    which includes every durable step, and later openings show the same.

    Method: run one seeded workload, and take the disks that a power cut at device operation 1, 2,
    3... leaves. Open the pool, cut the recovery too, twice in a row, at places chosen by
    the seed; compare all volumes, snapshots and bytes with the history; write more, stop,
    cleanly or not, and compare again. At the end the offline check finds no damage.
    """
    Sweep(shape, seed).run()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_inside_the_engine(shape: Shape) -> None:
    """Goal: when the power goes, the engine ends and acknowledges nothing more that is not durable;
    the pool recovers as in `test_power_cut_at_every_operation`.

    Method: as there, but rerun the workload for each cut, which is raised in all of its tasks.
    """
    Sweep(shape, 21).run_cutting(step=4 * len(shape.hosts))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_at_every_operation_of_the_recovery(shape: Shape) -> None:
    """Goal: after a power cut at any operation of a recovery, the next recovery finds all data.

    Method: as for every operation of the workload, but for a few cuts of the workload every
    operation of the first recovery is cut, and a second recovery somewhere.
    """
    Sweep(shape, 77, recovery_cuts=None).run(step=17 * len(shape.hosts), start=5)


@pytest.mark.parametrize("seed", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_while_blocks_are_moved(shape: Shape, seed: int) -> None:
    """Goal and method: as above, while most written blocks are overwritten soon and the cleaner
    moves the rest, during snapshots, merges and checkpoints. Rules R7, R10, R11, R13.
    """
    Sweep(shape, seed, actions=(30, 20), weights=CLEANING).run(step=3 * len(shape.hosts))


def relocate_always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make each checkpoint begin a metadata segment and empty all others, however full; return a
    list that gets an item for each page that is relocated."""
    honest_keep, honest_page = MetaWriter.keep, Relocator._relocate_page
    relocated = []

    def keep(self: MetaWriter) -> None:
        self.offset = SEGMENT_BYTES
        honest_keep(self)

    async def page(self: Relocator, *arguments: Any) -> int:
        relocated.append(1)
        return await honest_page(self, *arguments)

    monkeypatch.setattr(MetaWriter, "keep", keep)
    monkeypatch.setattr(Relocator, "_relocate_page", page)
    monkeypatch.setattr(relocate, "FOOTPRINT_MAX", 0)
    monkeypatch.setattr(relocate, "SPARE_SEGMENTS", 0)
    return relocated


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_while_pages_are_relocated(
    shape: Shape, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal and method: as above, while checkpoints relocate pages and directories out of metadata
    segments, whose slots are reused soon. Rules R8, R10.
    """
    relocated = relocate_always(monkeypatch)
    Sweep(shape, seed, actions=(30, 20), weights=CHECKPOINTS).run(step=4 * len(shape.hosts))
    assert len(relocated) > 100


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG_SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_while_pages_are_relocated_long(
    shape: Shape, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal and method: as above, at every operation."""
    relocate_always(monkeypatch)
    Sweep(shape, seed, actions=(40, 30), recovery_cuts=2, weights=CHECKPOINTS).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG_SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_while_blocks_are_moved_long(shape: Shape, seed: int) -> None:
    """Goal and method: as above, at every operation."""
    Sweep(shape, seed, actions=(40, 30), recovery_cuts=2, weights=CLEANING).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG_SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_at_every_operation_long(shape: Shape, seed: int) -> None:
    """Goal and method: as above, with a longer workload and more cuts of the recovery."""
    Sweep(shape, seed, actions=(40, 30), recovery_cuts=3).run()
