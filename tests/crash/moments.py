"""What a power cut leaves at each device operation of one life, without a rerun for each.

A life runs once, to its end, and its world is copied at the operations asked for. A copy holds
what the disks hold when the power goes at that operation: what is durable, what is cached and what
is in flight. Its history is what was begun and acknowledged by then. Tests that raise the power
cut inside the engine run beside those that use moments: an engine must also end well.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from blockdev.simulation.world import SimulatedWorld
from tests.crash.harness import live
from tests.crash.model import History


@dataclass(frozen=True)
class Moment:
    """A place where the power goes."""

    operation: int
    """Counted from 1; beyond the last one the life was complete."""
    world: SimulatedWorld
    """Its power is cut: reboot it."""
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
    """Live once; then give the moment of operation `start`, of every `step`-th after it, and last
    of the end."""
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
