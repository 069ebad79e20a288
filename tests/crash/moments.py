"""Gives the disks that a power cut leaves at each device operation of one life, from a single run.

A life runs once, to its end, and its world is copied at the operations asked for. A copy holds
the content of the disks when the power goes at that operation: durable, cached and in flight.
Its history holds the steps begun and acknowledged by then. Some tests raise the power cut inside
the engine instead, because the engine's tasks must also end well.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from blockdev.simulation.world import SimulatedWorld
from tests.crash.harness import live
from tests.crash.model import History


@dataclass(frozen=True)
class Moment:
    """The world and the history as of one operation at which the power goes."""

    operation: int
    """Number of the device operation, from 1; beyond the last one the life was complete."""
    world: SimulatedWorld
    """A copy whose power is cut: reboot it. At the end of the life, the stopped world."""
    history: History
    was_cut: bool
    """False when the life was complete."""


def moments(
    world: SimulatedWorld,
    life: Callable[[], Awaitable[object]],
    history: History,
    *,
    start: int = 1,
    step: int = 1,
) -> Iterator[Moment]:
    """Run the life once; then yield the moments of operation `start`, of every `step`-th operation
    after it, and of the end."""
    taken: list[tuple[SimulatedWorld, int, int]] = []
    next_at = start

    def take() -> None:
        nonlocal next_at
        if world.operations == next_at:
            taken.append((world.copy_as_cut(), len(history.steps), history.floor))
            next_at += step

    world.at_operation = take
    assert not live(world, life)
    world.at_operation = None
    taken.reverse()
    while taken:
        copy, steps, floor = taken.pop()
        known = history.back_when(steps, floor)
        yield Moment(copy.operations, copy, known, was_cut=True)
    yield Moment(next_at, world, history, was_cut=False)
