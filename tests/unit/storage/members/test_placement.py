"""Placement: the members that get copies, and how many segments fit."""

from hypothesis import given
from hypothesis import strategies as st

from storage.members.creation import default_segment_bytes
from storage.members.placement import Candidate, capacity, choose

FREE = st.lists(st.integers(0, 12), min_size=1, max_size=6)


def test_copies_go_to_different_hosts_while_there_is_another() -> None:
    two_hosts = [Candidate(0, "a", 9), Candidate(1, "a", 8), Candidate(2, "b", 1)]
    assert choose(two_hosts, 2) == [0, 2]
    one_host = [Candidate(0, "a", 9), Candidate(1, "a", 8)]
    assert choose(one_host, 2) == [0, 1]


def test_two_copies_never_share_a_member() -> None:
    assert choose([Candidate(0, "a", 9), Candidate(1, "b", 0)], 2) is None


@given(FREE, st.integers(1, 3))
def test_as_many_segments_are_placed_as_the_capacity_says(free: list[int], copies: int) -> None:
    """Method: place one by one until nothing fits."""
    left = list(free)
    placed = 0
    while chosen := choose([Candidate(i, f"h{i}", n) for i, n in enumerate(left)], copies):
        assert len(set(chosen)) == copies
        for member in chosen:
            left[member] -= 1
        placed += 1
    assert placed == capacity(free, copies)


def test_segments_grow_with_the_pool() -> None:
    gib = 1 << 30
    sizes = [default_segment_bytes(n * gib) >> 20 for n in (1, 8, 64, 1024, 4096, 16384, 99999)]
    assert sizes == [1, 8, 32, 32, 128, 256, 256]
