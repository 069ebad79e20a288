"""Ledger of unflushed writes: answered by the server, but lost if it forgets its cache.

A server that was reached again may have forgotten its cache (rule R4). From then on flushes fail,
and so do reads of lost ranges, until the owner acknowledges the loss; the owner then writes its
unflushed data again.
"""

from bisect import bisect_right

from blockdev.errors import CacheLostError

RANGES_MAX = 4096
"""Ranges remembered one by one: some hundred KiB. Beyond that, gaps between them are forgotten,
so that reads nearby may fail too after a loss."""


class Ledger:
    """Numbers writes as they are answered; a flush covers the writes up to its `mark`."""

    def __init__(self) -> None:
        self.lost = ""
        """Reason of a loss of unflushed writes; empty without one, or once acknowledged."""
        self.losses = 0
        """Number of losses."""
        self._number = 0
        self._unflushed: list[tuple[int, int, int]] = []  # number, start, end
        self._lost_starts: list[int] = []
        self._lost_ends: list[int] = []

    def is_dirty(self) -> bool:
        """Whether a write is answered and not flushed."""
        return bool(self._unflushed)

    def answered(self, offset: int, length: int) -> None:
        """Note a change that the server answered, but may hold in its cache only."""
        self._number += 1
        self._unflushed.append((self._number, offset, offset + length))
        if len(self._unflushed) > RANGES_MAX:
            # One number for all: only a flush after all of them covers them.
            ranges = _merged(self._unflushed, RANGES_MAX // 2)
            self._unflushed = [(self._number, start, end) for start, end in ranges]

    def mark(self) -> int:
        """Return the number of the last write that a flush beginning now will cover."""
        return self._number

    def flushed(self, mark: int) -> None:
        """Note that all writes up to the mark are durable."""
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
        """Note that the owner knows of the loss, and writes all since the last good flush again."""
        self.lost = ""
        self._lost_starts, self._lost_ends = [], []

    def check(self) -> None:
        """Raise CacheLostError if there is a loss that the owner has not acknowledged."""
        if self.lost:
            raise CacheLostError(f"writes since the last flush are lost: {self.lost}")

    def check_read(self, offset: int, length: int) -> None:
        """Raise CacheLostError if a write to part of the range is lost."""
        at = bisect_right(self._lost_starts, offset + length - 1)
        if at and self._lost_ends[at - 1] > offset:
            raise CacheLostError(
                f"what was written here is lost: {self.lost} offset={offset} length={length}"
            )


def _merged(ranges: list[tuple[int, int, int]], count_max: int) -> list[tuple[int, int]]:
    """Return at most `count_max` sorted disjoint ranges that cover all the given ones."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((start, end) for _, start, end in ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    if len(merged) <= count_max:
        return merged
    # Close the smallest gaps.
    gaps = sorted(range(1, len(merged)), key=lambda at: merged[at][0] - merged[at - 1][1])
    closed = set(gaps[: len(merged) - count_max])
    kept: list[tuple[int, int]] = []
    for at, (start, end) in enumerate(merged):
        if at in closed:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((start, end))
    return kept
