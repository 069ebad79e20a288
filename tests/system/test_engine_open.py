"""Opening a pool is quick, however much is mapped and however it was left."""

import pytest
import trio

from bench.open_time import TAILS, Harness, Tail
from tests.system.pool_daemon import scratch_directory

pytestmark = pytest.mark.system

CLEAN_S = 1.0
KILLED_S = 5.0
SLACK = 3
"""Machines that run tests are slow and shared; `bench/open_time.py` prints exact figures."""

MOST_COMMITS, MOST_RECORDS, MOST_OF_BOTH = TAILS
SHORT_BYTES, LONG_BYTES = 8 << 30, 64 << 30

CASES = [
    pytest.param(SHORT_BYTES, MOST_COMMITS, id="8-GiB-most-commits"),
    pytest.param(SHORT_BYTES, MOST_RECORDS, id="8-GiB-most-records"),
    pytest.param(LONG_BYTES, MOST_COMMITS, id="64-GiB-most-commits", marks=pytest.mark.long),
    pytest.param(LONG_BYTES, MOST_RECORDS, id="64-GiB-most-records", marks=pytest.mark.long),
    pytest.param(LONG_BYTES, MOST_OF_BOTH, id="64-GiB-most-of-both", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("mapped_bytes", "tail"), CASES)
def test_opening_stays_quick(mapped_bytes: int, tail: Tail) -> None:
    """Goal: a second after a clean stop, five after a kill with the longest tail there can be.

    Method: a map as large as the volume, made by real checkpoints; then a tail of the log that
    has as many commits, as many records, or as many of both as a checkpoint lets come about.
    """
    with scratch_directory() as directory:
        harness = Harness(directory / "member.img", mapped_bytes)
        trio.run(harness.build)
        harness.close_cleanly()
        clean_s = harness.open_seconds(cold=False)
        harness.leave(tail)
        killed_s = harness.open_seconds(cold=False)
    print(f"\nopen after clean stop: seconds={clean_s:.3f}; {tail.name}: seconds={killed_s:.3f}")
    assert clean_s < CLEAN_S * SLACK
    assert killed_s < KILLED_S * SLACK
