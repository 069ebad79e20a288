"""The environment of a pool: worker threads, wall clock and randomness, all given from outside.

A simulation gives its own: work in line, a mock clock, seeded bytes. The monotonic clock is
trio's, which a test replaces with a mock clock.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar
from uuid import UUID

import trio

P = ParamSpec("P")
T = TypeVar("T")


class Offload(Protocol):
    """Runs a function that is pure computation on its arguments, maybe in a thread."""

    def __call__(self, work: Callable[[], Any]) -> Awaitable[Any]:
        """Return the result of `work`; cancellation waits for `work` to end."""


async def _in_thread(work: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(work)


async def in_line(work: Callable[[], Any]) -> Any:
    """Run `work` without a thread: an `Offload` for simulations, so one seed gives one run."""
    return work()


@dataclass(frozen=True)
class Environment:
    """Everything that one pool takes from outside; the defaults are the real things."""

    offload: Offload = _in_thread
    wall_clock: Callable[[], datetime] = field(default=partial(datetime.now, UTC))
    random_bytes: Callable[[int], bytes] = os.urandom

    def new_uuid(self) -> UUID:
        """A random UUID, version 4."""
        return UUID(bytes=self.random_bytes(16), version=4)
