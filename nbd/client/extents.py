"""Converts block status to extents: clipped, merged, and in whole blocks."""

from collections.abc import Iterable, Iterator

from blockdev.device import EXTENTS_MAX, Extent
from nbd.constants import STATE_HOLE, STATE_ZERO

_KNOWN = STATE_HOLE | STATE_ZERO


def to_extents(runs: Iterable[tuple[int, int]], length: int, block_bytes: int) -> list[Extent]:
    """Return the extents of the beginning of a range.

    Args:
        runs: length and state of each in `base:allocation`; cut off at the end of the range.
        block_bytes: extents are whole blocks; a block that is partly data is data.
    """
    merged: list[tuple[int, int]] = []
    end = 0
    for start_next, state in _in_blocks(runs, length, block_bytes):
        if merged and merged[-1][1] == state:
            merged[-1] = (start_next, state)
        elif len(merged) == EXTENTS_MAX:
            break
        else:
            merged.append((start_next, state))
    extents = []
    for stop, state in merged:
        hole, zero = bool(state & STATE_HOLE), bool(state & STATE_ZERO)
        extents.append(Extent(stop - end, hole=hole, zero=zero))
        end = stop
    return extents


def _in_blocks(
    runs: Iterable[tuple[int, int]], length: int, block_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield the end of each run, a multiple of the block, and its state."""
    done = at = 0  # end of the yielded blocks, and end of the known runs
    common = 0  # flags that all runs between these two ends have
    for run_bytes, state in runs:
        is_partial = at > done
        at = min(at + run_bytes, length)
        if is_partial:
            common &= state
            if at < min(done + block_bytes, length):
                continue
            done = min(done + block_bytes, length)
            yield done, common & _KNOWN
        whole = at if at == length else at // block_bytes * block_bytes
        if whole > done:
            done = whole
            yield done, state & _KNOWN
        common = state
        if at == length:
            return
    if not done:  # less than a block is known
        yield min(block_bytes, length), 0
