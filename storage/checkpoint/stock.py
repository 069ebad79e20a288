"""Counts how full the segments were at a checkpoint."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from storage.format.checkpoint_root import LogPosition
from storage.members.segments import Segment, State


@dataclass(frozen=True, slots=True)
class Stock:
    """Number, used bytes and live bytes of the segments at the checkpoint of a commit."""

    commit: int = 0
    segments: int = 0
    used_bytes: int = 0
    live_bytes: int = 0


def take_stock(
    segments: Iterable[Segment],
    live_bytes: Callable[[Segment], int],
    position: LogPosition,
    meta_end: tuple[int, int] | None,
) -> Stock:
    """Add up segments as of the commit at `position`.

    Args:
        live_bytes: gives the live bytes of a segment, exact at that commit.
        meta_end: (segment, offset) where the metadata of the checkpoint ends.
    """
    ends = {position.segment: position.offset, position.announced: 0}
    if meta_end is not None:
        ends[meta_end[0]] = meta_end[1]
    count = used = live = 0
    for segment in segments:
        if segment.state is not State.FREED and segment.announced_in <= position.commit:
            count += 1
            used += ends.get(segment.number, segment.used_bytes)
            live += live_bytes(segment)
    return Stock(position.commit, count, used, live)
