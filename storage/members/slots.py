"""The free slots of one member: which is taken next, and which gives its space back below.

A slot that was used before still has its blocks in the file system: writing there again is faster
than writing into a hole, so these are taken first, the last freed one before others. More of
them than are likely to be wanted soon are trimmed: a hole in a sparse file, a discard on a disk. A
slot is taken out of the choice while it is trimmed (R10), and counts as free all the while.
"""

import heapq
from collections.abc import Iterable

import trio

KEEP_MIN = 4
KEEP_FRACTION = 128
"""One slot in so many, at least four, stays as it is after use: more than what a checkpoint frees
in a pool at rest, and less than a hundredth of the member."""

KEEP_S = 600.0
"""A slot that nobody wanted for so long is trimmed too: an idle pool gives all space back."""


class FreeSlots:
    """Free slots by number; those never used come in ascending order. Times in seconds."""

    def __init__(self, blank: Iterable[int], *, slots: int = 0) -> None:
        self._blank = list(blank)
        heapq.heapify(self._blank)
        self._used: list[tuple[float, int]] = []
        """(time it was freed, slot), the oldest first."""
        self._trimmed: int | None = None
        self._done = trio.Event()
        self._keep = max(KEEP_MIN, max(slots, len(self._blank)) // KEEP_FRACTION)

    def __len__(self) -> int:
        return len(self._blank) + len(self._used) + (self._trimmed is not None)

    def peek(self) -> int | None:
        """The slot that `take` would give."""
        if self._used:
            return self._used[-1][1]
        return self._blank[0] if self._blank else None

    def take(self) -> int | None:
        """A slot that is free no longer; None when there is none, or only one being trimmed."""
        if self._used:
            return self._used.pop()[1]
        return heapq.heappop(self._blank) if self._blank else None

    async def take_or_wait(self) -> int | None:
        """As `take`; a slot that is being trimmed is waited for."""
        while (slot := self.take()) is None and self._trimmed is not None:
            await self._done.wait()
        return slot

    def remove(self, slot: int) -> None:
        """Take this one. Raises ValueError if it is not free; nothing is trimmed yet."""
        self._blank.remove(slot)
        heapq.heapify(self._blank)

    def give(self, slot: int, now: float) -> None:
        """A slot that was used, and holds nothing any more."""
        self._used.append((now, slot))

    def extend(self, slots: int, blank: Iterable[int]) -> None:
        """The member has become larger: `slots` in all, of which some are new."""
        self._keep = max(KEEP_MIN, slots // KEEP_FRACTION)
        for slot in blank:
            heapq.heappush(self._blank, slot)

    def found_used(self, slots: set[int], now: float) -> None:
        """Those of `slots` that were taken for blank have space below all the same."""
        found = [slot for slot in self._blank if slot in slots]
        self._blank = [slot for slot in self._blank if slot not in slots]
        heapq.heapify(self._blank)
        self._used = [(now, slot) for slot in found] + self._used

    # -- trimming

    def begin_trim(self, now: float) -> int | None:
        """A slot to be trimmed now, or None; `end_trim` must follow."""
        if self._trimmed is not None or not self._used:
            return None
        freed_at, slot = self._used[0]
        if len(self._used) <= self._keep and now - freed_at < KEEP_S:
            return None
        del self._used[0]
        self._trimmed = slot
        return slot

    def end_trim(self, *, done: bool, now: float) -> None:
        """The slot is to be had again, as blank if the trim is `done`."""
        assert self._trimmed is not None
        if done:
            heapq.heappush(self._blank, self._trimmed)
        else:
            self._used.append((now, self._trimmed))
        self._trimmed = None
        self._done.set()
        self._done = trio.Event()
