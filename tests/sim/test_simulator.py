"""The simulator itself: one seed gives one run, and the model accepts only allowed contents."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.model import BLOCK, Image, State, VolumeModel
from tests.sim.actions import WEIGHTS
from tests.sim.deterministic import quiet_and_quick
from tests.sim.model import Model, Wrong
from tests.sim.plan import make_plan, spell, unspell
from tests.sim.shrink import shrink
from tests.sim.simulation import simulate

ROOT = Path(__file__).parents[2]
SEEDS = (14, 28, 12, 13)
"""Seeds of pools of one member, of two, of three with two copies and with three; all but the second
with faults."""
SIZE = 0.4
"""Number of actions, relative to a usual run."""
ONE, TWO, OTHER = (bytes([number]) * BLOCK for number in (1, 2, 3))
ZERO = bytes(BLOCK)


def trace(seed: int) -> str:
    with quiet_and_quick():
        outcome = simulate(make_plan(seed, WEIGHTS, size=SIZE))
    return f"{outcome.operations} {outcome.crash_points} {outcome.hashed}"


def test_one_seed_gives_one_run_bit_for_bit_in_every_process() -> None:
    """Goal: a failing seed fails again in every process.

    Method: compare the hash of every device operation and its result, of all lives, power cuts and
    recoveries, of two runs here and one in a process whose hashes of strings differ.
    """
    here = [trace(seed) for seed in SEEDS]
    assert len(set(here)) == len(SEEDS)
    script = f"from tests.sim.test_simulator import *\nfor s in {SEEDS}: print(trace(s))"
    there = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=300, env={**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert there.stdout.split("\n")[:-1] == here
    assert [trace(seed) for seed in SEEDS] == here


# The model


def model_with_a_volume() -> Model:
    model = Model()
    model.is_durable(model.create("v", 8 * BLOCK))
    return model


def found(*blocks: bytes, **snapshots: dict[int, bytes]) -> State:
    head = Image(8 * BLOCK, {i: b for i, b in enumerate(blocks) if b != ZERO})
    snaps = {name: Image(8 * BLOCK, content) for name, content in snapshots.items()}
    return {"v": VolumeModel(head, snaps)}


def is_possible(model: Model, state: State) -> bool:
    try:
        model.explain(state, model.mark())
    except Wrong:
        return False
    return True


def test_an_unflushed_write_may_be_there_or_not() -> None:
    model = model_with_a_volume()
    model.write("v", 0, BLOCK, ONE).returned()
    assert is_possible(model, found())
    assert is_possible(model, found(ONE))
    assert not is_possible(model, found(TWO))
    assert not is_possible(model, {})


def test_a_flushed_write_must_be_there_and_a_later_one_may() -> None:
    model = model_with_a_volume()
    model.write("v", 0, BLOCK, ONE).returned()
    flush = model.tick()
    model.write("v", BLOCK, BLOCK, TWO).returned()
    model.is_durable(flush)
    assert not is_possible(model, found())
    assert is_possible(model, found(ONE))
    assert is_possible(model, found(ONE, TWO))


def test_writes_one_after_another_are_lost_from_the_end_only() -> None:
    model = model_with_a_volume()
    model.write("v", 0, BLOCK, ONE).returned()
    model.write("v", BLOCK, BLOCK, TWO).returned()
    assert not is_possible(model, found(ZERO, TWO))


def test_writes_at_the_same_time_may_come_in_any_order_block_by_block() -> None:
    model = model_with_a_volume()
    one = model.write("v", 0, 2 * BLOCK, ONE + ONE)
    two = model.write("v", 0, 2 * BLOCK, TWO + TWO)
    two.returned()
    one.returned()
    for state in (found(ONE, TWO), found(TWO, ONE), found(ZERO, TWO), found(ONE, ONE)):
        assert is_possible(model, state)
    model.is_durable(model.tick())
    assert not is_possible(model, found(ZERO, TWO))
    assert is_possible(model, found(ONE, TWO))


def test_a_write_of_part_of_a_block_keeps_the_rest() -> None:
    model = model_with_a_volume()
    one = model.write("v", 0, 100, ONE[:100])
    two = model.write("v", 50, 100, TWO[:100])
    one.returned()
    two.returned()
    model.is_durable(model.tick())
    rest = ZERO[150:]
    assert is_possible(model, found(ONE[:50] + TWO[:100] + rest))
    assert is_possible(model, found(ONE[:100] + TWO[:50] + rest))
    assert not is_possible(model, found(ZERO[:50] + TWO[:100] + rest))


def test_a_fua_write_must_be_there_and_one_beside_it_may() -> None:
    model = model_with_a_volume()
    other = model.write("v", BLOCK, BLOCK, OTHER)
    model.write("v", 0, BLOCK, ONE).returned(fua=True)
    other.returned()
    assert is_possible(model, found(ONE))
    assert is_possible(model, found(ONE, OTHER))
    assert not is_possible(model, found(ZERO, OTHER))


def test_a_failed_write_may_have_been_done_but_not_later() -> None:
    model = model_with_a_volume()
    model.write("v", 0, BLOCK, ONE).failed()
    assert is_possible(model, found())
    assert is_possible(model, found(ONE))
    model.write("v", 0, BLOCK, TWO).returned()
    model.is_durable(model.tick())
    assert not is_possible(model, found(ONE))
    assert is_possible(model, found(TWO))


def test_snapshots_are_of_one_instant_and_stay() -> None:
    model = model_with_a_volume()
    model.write("v", 0, BLOCK, ONE).returned()
    beside = model.write("v", BLOCK, BLOCK, TWO)
    model.is_durable(model.snapshot(["v"], "s"))
    beside.returned()
    model.write("v", 0, BLOCK, OTHER).returned()
    assert is_possible(model, found(OTHER, TWO, s={0: ONE}))
    assert is_possible(model, found(ONE, TWO, s={0: ONE, 1: TWO}))
    assert not is_possible(model, found(ONE, ZERO, s={0: OTHER}))
    assert not is_possible(model, found(ONE, TWO, s={}))
    model.check_read("v@s", BLOCK, TWO, model.tick())
    assert not is_possible(model, found(ONE, TWO, s={0: ONE}))


def test_a_read_may_show_any_content_of_the_time_it_ran() -> None:
    model = model_with_a_volume()
    model.write("v", 0, BLOCK, ONE).returned()
    before = model.tick()
    beside = model.write("v", 0, BLOCK, TWO)
    model.check_read("v", 0, ONE, before)
    model.check_read("v", 0, TWO, before)
    with pytest.raises(Wrong, match="reads wrong"):
        model.check_read("v", 0, ONE, model.tick())  # too old: a read returned the new content
    beside.returned()
    with pytest.raises(Wrong, match="reads wrong"):
        model.check_read("v", 0, OTHER, model.tick())


def test_content_that_a_recovery_did_not_show_must_not_come_back() -> None:
    model = model_with_a_volume()
    model.write("v", 0, BLOCK, ONE).returned()
    mark = model.mark()
    model.settle(found(), model.explain(found(), mark))
    assert is_possible(model, found())
    assert not is_possible(model, found(ONE))


# Shrinking


def test_a_failing_run_is_made_as_small_as_can_be() -> None:
    plan = make_plan(5, WEIGHTS)
    wanted = {item.number for item in plan.lives[1].clients[0][2:4]}

    def fails(smaller: object) -> str:
        assert isinstance(smaller, type(plan))
        return "wrong" * (wanted <= {item.number for item in smaller.items()})

    small = shrink(plan, fails, "wrong")
    assert small.kept == wanted
    assert small.lives == 2
    assert "--seed 5 --lives 2 --only" in small.arguments
    assert unspell(spell(wanted)) == wanted


@pytest.mark.parametrize("numbers", [set(), {3}, {1, 2, 3}, {1, 4, 5, 9}], ids=str)
def test_numbers_are_spelled_and_read(numbers: set[int]) -> None:
    assert unspell(spell(numbers)) == numbers
