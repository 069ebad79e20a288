"""Chooses the members that hold the copies of a new segment.

Copies of a segment go to different members always, and to different hosts while another host has
room. Among equals the member with the most free slots is taken, which fills members of different
sizes evenly and places as many segments as can be placed.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member that could take a copy."""

    member: int
    host: str
    free_slots: int


def choose(candidates: Sequence[Candidate], copies: int) -> list[int] | None:
    """Return the members for one segment, or None when fewer than `copies` have a free slot."""
    ranked = sorted(
        (c for c in candidates if c.free_slots), key=lambda c: (-c.free_slots, c.member)
    )
    if len(ranked) < copies:
        return None
    chosen: list[Candidate] = []
    for candidate in ranked:
        if len(chosen) < copies and all(candidate.host != c.host for c in chosen):
            chosen.append(candidate)
    for candidate in ranked:
        if len(chosen) < copies and candidate not in chosen:
            chosen.append(candidate)
    return [c.member for c in chosen]


def capacity(free_slots: Sequence[int], copies: int) -> int:
    """Return how many segments of `copies` copies on distinct members fit these free slots.

    That is the largest k with sum(min(free, k)) >= copies * k; taking the members with the most
    free slots first reaches it. Cost: a few passes over the members.
    """
    if len(free_slots) < copies:
        return 0
    low, high = 0, sum(free_slots) // copies
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(free, middle) for free in free_slots) >= copies * middle:
            low = middle
        else:
            high = middle - 1
    return low
