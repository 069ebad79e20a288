"""Finds runs of blocks with one state each, page by page, with a bounded amount of work.

The view that is walked gives the states their meaning. Blocks of pages that it does not list are in
state 0.
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
"""Pages and parts of pages that one walk reads from disk, each 1 or 2 random reads."""
TURN_PAGES = 16
"""Pages between two turns of other tasks: some 500 us."""

States = NDArray[np.uint32]
Run = tuple[int, int]


class View(Protocol):
    """Gives every block a state."""

    reads: int
    """Pages and parts of pages read from disk so far."""

    def pages(self, low: int, end: int, most: int) -> list[int]:
        """The first `most` pages of [low, end) in which a state may differ from 0, ascending."""

    async def states(self, number: int) -> States:
        """The states of the blocks of a page, shape (1024,).

        Raises:
            ChecksumError, DamagedError: a page of the map has no good copy.
        """


class Runs:
    """Builds runs; adjacent runs differ in their states."""

    def __init__(self) -> None:
        self.items: list[Run] = []
        """(blocks, state) of each run."""

    def add(self, blocks: int, state: int) -> None:
        """Append one run."""
        if self.items and self.items[-1][1] == state:
            self.items[-1] = (self.items[-1][0] + blocks, state)
        else:
            self.items.append((blocks, state))

    def add_states(self, states: States) -> None:
        """Append runs from one state per block; shape (n,), n >= 1."""
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
    """Turn runs of blocks into runs of bytes, cut to the range that begins `skip_bytes` into the
    first one."""
    found = [(blocks << BLOCK_SHIFT, state) for blocks, state in runs]
    over = sum(length for length, _ in found) - skip_bytes - length_bytes
    found[0] = (found[0][0] - skip_bytes, found[0][1])
    found[-1] = (found[-1][0] - max(over, 0), found[-1][1])
    return found
