"""Runs a job once for all tasks that ask for it at the same time."""

from collections.abc import Awaitable, Callable

import trio


class SharedRun:
    """Runs a job for the tasks that call it, one run at a time.

    All calls made during a run share the next run: a run under way may already be past the changes
    that the callers want it to see.
    """

    def __init__(self, job: Callable[[], Awaitable[None]]) -> None:
        self._job = job
        self._lock = trio.Lock()
        self._begun = 0
        self._done = 0
        """Number of the newest run that succeeded."""

    async def __call__(self) -> None:
        """Return when a run that began after the call has succeeded. An error of the job is
        raised in the call that began the run; cancellation does not affect a run that another call
        began.
        """
        seen = self._begun
        async with self._lock:
            if self._done > seen:
                return
            self._begun += 1
            number = self._begun
            await self._job()
            self._done = number
