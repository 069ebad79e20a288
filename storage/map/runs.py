"""Runs of blocks with one state each, found page by page with a bounded amount of work.

What a state says is up to the view that is walked. Pages that it does not name are in state 0.
"""

from typing import Protocol

import numpy as np
import trio
from numpy.typing import NDArray

from blockdev.device import EXTENTS_MAX
from storage.format.entry import BLOCK_SHIFT
from storage.format.pages import PAGE_SHIFT

PAGES_MAX = 1024
"""Pages looked at in one walk: 4 GiB of data, in some 30 ms if they are in memory."""
READS_MAX = 128
"""Pages and parts of pages that are read for it, each 1 or 2 random reads of a disk."""
TURN_PAGES = 16
"""Then others run: some 500 us."""

States = NDArray[np.uint32]
Run = tuple[int, int]


class View(Protocol):
    """Something that every block has a state in."""

    reads: int
    """How much was read so far that was not in memory."""

    def pages(self, low: int, end: int, most: int) -> list[int]:
        """The first pages of [low, end), at most so many, in which any state may not be 0."""

    async def states(self, number: int) -> States:
        """The states of the blocks of a page, shape (1024,).

        Raises:
            ChecksumError, DamagedError: a page of the map has no good copy.
        """


class Runs:
    """Runs under construction; neighbours differ in their states."""

    def __init__(self) -> None:
        self.items: list[Run] = []
        """Blocks and state of each."""

    def add(self, blocks: int, state: int) -> None:
        """Append one run."""
        if self.items and self.items[-1][1] == state:
            self.items[-1] = (self.items[-1][0] + blocks, state)
        else:
            self.items.append((blocks, state))

    def add_states(self, states: States) -> None:
        """Append one state per block, at least one."""
        starts = np.concatenate(([0], np.flatnonzero(states[1:] != states[:-1]) + 1))
        lengths = np.diff(starts, append=len(states)).tolist()
        values = states[starts].tolist()
        self.add(lengths[0], values[0])
        self.items += zip(lengths[1:], values[1:], strict=True)


async def walk(view: View, first: int, end: int) -> list[Run]:
    """Describe the beginning of a range of blocks: at least one run, at most `EXTENTS_MAX`, none
    past the range. Raises as `View.states`.
    """
    low, high = first >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1
    numbers = view.pages(low, high, PAGES_MAX)
    if len(numbers) == PAGES_MAX:
        end = min(end, numbers[-1] + 1 << PAGE_SHIFT)
    runs = Runs()
    at, reads_before = first, view.reads
    for done, number in enumerate(numbers):
        start = max(at, number << PAGE_SHIFT)
        if len(runs.items) >= EXTENTS_MAX or view.reads - reads_before >= READS_MAX:
            end = start
            break
        if start > at:
            runs.add(start - at, 0)
        stop = min(end, number + 1 << PAGE_SHIFT)
        states = await view.states(number)
        page_start = number << PAGE_SHIFT
        runs.add_states(states[start - page_start : stop - page_start])
        at = stop
        if done % TURN_PAGES == TURN_PAGES - 1:
            await trio.lowlevel.checkpoint()
    if at < end:
        runs.add(end - at, 0)
    return runs.items[:EXTENTS_MAX]


def in_bytes(runs: list[Run], skip_bytes: int, length_bytes: int) -> list[Run]:
    """Runs of blocks as runs of bytes, cut at both ends to a range that begins in the first."""
    found = [(blocks << BLOCK_SHIFT, state) for blocks, state in runs]
    over = sum(length for length, _ in found) - skip_bytes - length_bytes
    found[0] = (found[0][0] - skip_bytes, found[0][1])
    found[-1] = (found[-1][0] - max(over, 0), found[-1][1])
    return found
