"""Work that several ask for at once, done once."""

from collections.abc import Awaitable, Callable

import trio


class SharedRun:
    """Runs a job for whoever calls it, one at a time.

    All who call while it runs share the next run: the one under way may have passed what they
    want it to see.
    """

    def __init__(self, job: Callable[[], Awaitable[None]]) -> None:
        self._job = job
        self._lock = trio.Lock()
        self._begun = 0
        self._done = 0
        """The newest run that succeeded."""

    async def __call__(self) -> None:
        """Return when a run that began after the call has succeeded. Raises as the job does in the
        run that this call began; cancelling leaves the run of another one alone.
        """
        seen = self._begun
        async with self._lock:
            if self._done > seen:
                return
            self._begun += 1
            number = self._begun
            await self._job()
            self._done = number
