"""What would be lost if the server went away now: writes that were answered, but not flushed.

A server that was reached anew may have forgotten its cache (rule R4). From then on flushes fail,
and so do reads of what was lost, until the owner says that it knows; then it writes again
whatever was not flushed.
"""

from bisect import bisect_right

from blockdev.errors import CacheLostError

RANGES_MAX = 4096
"""Ranges remembered one by one: some hundred KiB. Beyond that, gaps between them are forgotten,
so that reads nearby may fail too after a loss."""


class Ledger:
    """Counts writes as they are answered; a flush covers those before its `mark`."""

    def __init__(self) -> None:
        self.lost = ""
        """Why what was not flushed is lost; empty while nothing is, or the owner knows."""
        self.losses = 0
        """How often something was lost."""
        self._number = 0
        self._unflushed: list[tuple[int, int, int]] = []  # number, start, end
        self._lost_starts: list[int] = []
        self._lost_ends: list[int] = []

    def is_dirty(self) -> bool:
        """Whether something is answered and not flushed."""
        return bool(self._unflushed)

    def answered(self, offset: int, length: int) -> None:
        """Note a change that the server answered, and may hold in its cache only."""
        self._number += 1
        self._unflushed.append((self._number, offset, offset + length))
        if len(self._unflushed) > RANGES_MAX:
            # One number for all: only a flush after all of them covers them.
            ranges = _merged(self._unflushed, RANGES_MAX // 2)
            self._unflushed = [(self._number, start, end) for start, end in ranges]

    def mark(self) -> int:
        """Return where a flush that begins now will have come to."""
        return self._number

    def flushed(self, mark: int) -> None:
        """Note that everything up to the mark is durable."""
        self._unflushed = [one for one in self._unflushed if one[0] > mark]

    def lose(self, reason: str) -> None:
        """Note that the server may have forgotten its cache."""
        if self._unflushed:
            self.lost = reason
            self.losses += 1
            earlier = zip(self._lost_starts, self._lost_ends, strict=True)
            ranges = [(0, start, end) for start, end in earlier] + self._unflushed
            merged = _merged(ranges, RANGES_MAX)
            self._lost_starts = [start for start, _ in merged]
            self._lost_ends = [end for _, end in merged]
            self._unflushed = []

    def acknowledge(self) -> None:
        """Say that the owner knows, and writes everything since the last good flush again."""
        self.lost = ""
        self._lost_starts, self._lost_ends = [], []

    def check(self) -> None:
        """Raise CacheLostError if something is lost that the owner has not acknowledged."""
        if self.lost:
            raise CacheLostError(f"writes since the last flush are lost: {self.lost}")

    def check_read(self, offset: int, length: int) -> None:
        """Raise CacheLostError if some of the range is lost: what was written is not there."""
        at = bisect_right(self._lost_starts, offset + length - 1)
        if at and self._lost_ends[at - 1] > offset:
            raise CacheLostError(
                f"what was written here is lost: {self.lost} offset={offset} length={length}"
            )


def _merged(ranges: list[tuple[int, int, int]], count_max: int) -> list[tuple[int, int]]:
    """Return at most so many sorted ranges, apart from each other, that hold all of these."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((start, end) for _, start, end in ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    if len(merged) <= count_max:
        return merged
    # The smallest gaps go first.
    gaps = sorted(range(1, len(merged)), key=lambda at: merged[at][0] - merged[at - 1][1])
    closed = set(gaps[: len(merged) - count_max])
    kept: list[tuple[int, int]] = []
    for at, (start, end) in enumerate(merged):
        if at in closed:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((start, end))
    return kept
