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
"""Failing seeds join these."""
CASES = [(shape, seed) for shape in SHAPES for seed in SEEDS[shape]]
LONG_SEEDS = range(1000, 1030)


@pytest.mark.parametrize(("shape", "seed"), CASES, ids=str)
def test_power_cut_at_every_operation(shape: Shape, seed: int) -> None:
    """Goal: after a power cut at any instant, the whole pool is what one prefix of the
    acknowledged steps gives, one that has all that was durable; and it stays that.

    Method: run one seeded workload, and take what a power cut at device operation 1, 2, 3... would
    leave. Open what is left, cut the recovery too, twice in a row, at places chosen by
    the seed; hold all volumes, snapshots and bytes against the history; write more, stop,
    cleanly or not, and look again. At the end the offline check finds no damage.
    """
    Sweep(shape, seed).run()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_inside_the_engine(shape: Shape) -> None:
    """Goal: the engine ends when the power goes, acknowledges nothing more that is not durable, and
    what it leaves is as good.

    Method: as above, but run the workload anew for each cut, which all of its tasks then meet.
    """
    Sweep(shape, 21).run_cutting(step=4 * len(shape.hosts))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_at_every_operation_of_the_recovery(shape: Shape) -> None:
    """Goal: a recovery may be cut anywhere, and the next one still finds everything.

    Method: as above, but for a few cuts of the workload every operation of the first
    recovery is cut, and a second recovery somewhere.
    """
    Sweep(shape, 77, recovery_cuts=None).run(step=17 * len(shape.hosts), start=5)


@pytest.mark.parametrize("seed", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_cut_while_blocks_are_moved(shape: Shape, seed: int) -> None:
    """Goal and method: as above, while most of what is written dies soon and the cleaner moves the
    rest, under snapshots, merges and checkpoints. Rules R7, R10, R11, R13.
    """
    Sweep(shape, seed, actions=(30, 20), weights=CLEANING).run(step=3 * len(shape.hosts))


def relocate_always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each checkpoint begins a metadata segment and empties all others, however full; returns a
    list that gets an item for each page that is written again."""
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
    """Goal and method: as above, while checkpoints write pages and directories out of metadata
    segments again, whose slots are reused soon. Rules R8, R10.
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
