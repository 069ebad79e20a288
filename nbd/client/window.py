"""Bounds the requests in flight, by number and by bytes, and admits them in order."""

from collections import deque

import trio


class Window:
    """Room for `count_max` requests of `bytes_max` together; a longer request goes alone."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self.count_max = count_max
        self._bytes_max = bytes_max
        self._count = 0
        self._bytes = 0
        self._waiting: deque[tuple[int, trio.lowlevel.Task]] = deque()

    async def acquire(self, size: int) -> None:
        """Take room for a request; suspends only if there is none. When cancelled, takes none."""
        if not self._waiting and self._fits(size):
            self._take(size)
            return
        place = (size, trio.lowlevel.current_task())
        self._waiting.append(place)

        def leave(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(place)
            self._admit()  # a smaller request behind may fit
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def release(self, size: int) -> None:
        """Give the room of a request back."""
        self._count -= 1
        self._bytes -= size
        self._admit()

    def widen(self, count_max: int) -> None:
        """Change how many requests may be in flight; requests in flight stay."""
        self.count_max = count_max
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, task = self._waiting.popleft()
            self._take(size)
            trio.lowlevel.reschedule(task)

    def _fits(self, size: int) -> bool:
        if not self._count:
            return True
        return self._count < self.count_max and self._bytes + size <= self._bytes_max

    def _take(self, size: int) -> None:
        self._count += 1
        self._bytes += size
