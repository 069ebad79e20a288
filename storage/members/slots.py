"""The free slots of one member: which slot is taken next, and which is trimmed.

A slot that was used before still has its blocks in the file system. Writing there again is faster
than writing into a hole, so used slots are taken first, the last freed one before others. More used
slots than are likely to be wanted soon are trimmed: a hole in a sparse file, a discard on a disk. A
slot cannot be taken while it is trimmed (R10), but counts as free.
"""

import heapq
from collections.abc import Iterable

import trio

KEEP_MIN = 4
KEEP_FRACTION = 128
"""One slot in so many, at least four, is not trimmed after use: more than a checkpoint frees in a
pool at rest, and less than a hundredth of the member."""

KEEP_S = 600.0
"""A slot that was free for so long is trimmed too: an idle pool gives all space back."""


class FreeSlots:
    """Free slots by number; times in seconds.

    Blank slots were never used, or are trimmed; the lowest of them is taken first.
    """

    def __init__(self, blank: Iterable[int], *, slots: int = 0) -> None:
        self._blank = list(blank)
        heapq.heapify(self._blank)
        self._used: list[tuple[float, int]] = []
        """(time when it was freed, slot), the oldest first."""
        self._trimmed: int | None = None
        self._done = trio.Event()
        self._keep = max(KEEP_MIN, max(slots, len(self._blank)) // KEEP_FRACTION)

    def __len__(self) -> int:
        return len(self._blank) + len(self._used) + (self._trimmed is not None)

    def peek(self) -> int | None:
        """Return the slot that `take` would take, or None."""
        if self._used:
            return self._used[-1][1]
        return self._blank[0] if self._blank else None

    def take(self) -> int | None:
        """Take a slot; None when there is none, or only one that is being trimmed."""
        if self._used:
            return self._used.pop()[1]
        return heapq.heappop(self._blank) if self._blank else None

    async def take_or_wait(self) -> int | None:
        """Take a slot, if need be after its trim; None when there is none."""
        while (slot := self.take()) is None and self._trimmed is not None:
            await self._done.wait()
        return slot

    def remove(self, slot: int) -> None:
        """Take this slot, a blank one. Raises ValueError if it is not among the blank slots."""
        self._blank.remove(slot)
        heapq.heapify(self._blank)

    def give(self, slot: int, now: float) -> None:
        """Give back a slot that was used and holds nothing any more."""
        self._used.append((now, slot))

    def extend(self, slots: int, blank: Iterable[int]) -> None:
        """Add the `blank` slots of a member that has grown to `slots` slots in all."""
        self._keep = max(KEEP_MIN, slots // KEEP_FRACTION)
        for slot in blank:
            heapq.heappush(self._blank, slot)

    def mark_used(self, slots: set[int], now: float) -> None:
        """Count blank slots in `slots` as used: space is allocated for them all the same."""
        found = [slot for slot in self._blank if slot in slots]
        self._blank = [slot for slot in self._blank if slot not in slots]
        heapq.heapify(self._blank)
        self._used = [(now, slot) for slot in found] + self._used

    # -- trimming

    def begin_trim(self, now: float) -> int | None:
        """Return a slot to trim now, or None; `end_trim` must follow the trim."""
        if self._trimmed is not None or not self._used:
            return None
        freed_at, slot = self._used[0]
        if len(self._used) <= self._keep and now - freed_at < KEEP_S:
            return None
        del self._used[0]
        self._trimmed = slot
        return slot

    def end_trim(self, *, done: bool, now: float) -> None:
        """Make the slot available again, as a blank one if the trim is `done`."""
        assert self._trimmed is not None
        if done:
            heapq.heappush(self._blank, self._trimmed)
        else:
            self._used.append((now, self._trimmed))
        self._trimmed = None
        self._done.set()
        self._done = trio.Event()
