"""Moments: a copy of a world equals the disks that a power cut inside the engine leaves."""

import pytest

from blockdev.simulation.world import SimulatedWorld
from tests.crash.harness import ONE, SHAPES, Shape, live, new_world
from tests.crash.model import History
from tests.crash.moments import moments
from tests.crash.workload import Workload, sessions

ACTIONS = (6, 3)


def after(world: SimulatedWorld) -> list[dict[int, bytes]]:
    return [disk._durable._chunks for disk in world.reboot(outcome=3).disks]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_moment_is_what_a_cut_inside_the_engine_leaves(shape: Shape) -> None:
    """Goal: sweeps that run a life once see the same disks as sweeps that rerun it for each cut.

    Method: compare both at every third operation of one workload. No more steps are acknowledged
    at a moment than after the cut, where tasks that had been woken still ran.
    """
    made = new_world(shape, 5)
    world, history = made.reboot(), History()
    life = sessions(world, shape, Workload(history, 5), ACTIONS)
    seen = 0
    for moment in moments(world, life, history, step=3):
        cut, known = made.reboot(moment.operation), History()
        assert live(cut, sessions(cut, shape, Workload(known, 5), ACTIONS)) is moment.was_cut
        assert after(cut) == after(moment.world)
        labels = [step.label for step in known.steps]
        assert [step.label for step in moment.history.steps] == labels[: len(moment.history.steps)]
        assert moment.history.floor <= known.floor
        seen += moment.was_cut
    assert seen > 10


def test_moments_start_where_they_are_asked_for_and_end_with_the_life() -> None:
    world, history = new_world(ONE, 5).reboot(), History()
    life = sessions(world, ONE, Workload(history, 5), ACTIONS)
    found = list(moments(world, life, history, start=4, step=10))
    assert [each.operation for each in found] == [*range(4, 10 * len(found), 10)]
    assert [each.was_cut for each in found] == [True] * (len(found) - 1) + [False]
    assert found[-1].history is history
    assert history.floor == len(history.steps)
