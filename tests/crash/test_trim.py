"""Power cuts while free slots are trimmed in the background."""

import pytest
import trio

from blockdev.simulation.disk import SimulatedDisk
from storage.members import slots, trimmer
from storage.pool import Pool
from tests.crash import model
from tests.crash.harness import MIB, ONE, TWO_OF_THREE, Shape
from tests.crash.model import BLOCK
from tests.crash.sweep import Sweep
from tests.crash.workload import Workload

ROUNDS = 4


class Churning(Workload):
    """Begins by overwriting a volume as a whole, so that segments die and are freed."""

    async def run(self, pool: Pool, actions: int) -> None:
        await super().run(pool, 0)
        for _ in range(ROUNDS):
            device = pool.open_export("data")
            data = [self._rng.randbytes(BLOCK) for _ in range(MIB // BLOCK)]
            for block, each in enumerate(data):
                self.history.begin(model.put_block("data", block, each))
            await device.write(0, b"".join(data))
            await device.close()
            await self._flush()
            await pool.checkpoint()
            await trio.sleep(0.05)
        await super().run(pool, actions)


def sweep_with_trims(
    shape: Shape, seed: int, monkeypatch: pytest.MonkeyPatch, *, step: int
) -> None:
    trims = 0
    trim = SimulatedDisk.trim

    async def counted(disk: SimulatedDisk, offset: int, length: int, *, fua: bool = False) -> None:
        nonlocal trims
        trims += 1
        await trim(disk, offset, length, fua=fua)

    monkeypatch.setattr(SimulatedDisk, "trim", counted)
    monkeypatch.setattr(slots, "KEEP_MIN", 0)
    monkeypatch.setattr(trimmer, "LOOK_INTERVAL_S", 0.01)
    sweep = Sweep(shape, seed, actions=(4, 4), workload=Churning)
    sweep.run(step, start=1 + seed % step)
    assert trims > 20


@pytest.mark.parametrize(
    ("shape", "seed", "step"), [(ONE, 501, 7), (ONE, 502, 7), (TWO_OF_THREE, 503, 23)], ids=str
)
def test_power_cut_while_free_slots_are_trimmed(
    shape: Shape, seed: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a trim destroys no data that the durable state names, however much of it a cut leaves.

    Method: as in `test_power_cut`, but at every `step`-th operation, with each slot trimmed as
    soon as it is free.
    """
    sweep_with_trims(shape, seed, monkeypatch, step=step)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1500, 1506))
@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
def test_power_cut_while_free_slots_are_trimmed_long(
    shape: Shape, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal and method: as in the short test, at every operation."""
    sweep_with_trims(shape, seed, monkeypatch, step=1)
