"""Opening a pool is quick, however much is mapped and however it was left.

Time is that of the processor: a machine that runs tests has other work too.
`bench/open_time.py` prints exact figures.
"""

import time
from dataclasses import replace

import pytest
import trio

from bench.open_time import TAILS, Harness, Tail
from tests.system.pool_daemon import scratch_directory

pytestmark = pytest.mark.system

CLEAN_S = 1.0
KILLED_S = 5.0
SLACK = 10

SHORT_BYTES, LONG_BYTES = 8 << 30, 64 << 30
PART = 8
"""The short form's tails are this part of the longest ones; they take most of the test's time."""
LONG = pytest.mark.long

CASES = [
    pytest.param(SHORT_BYTES, TAILS[0], PART, id="8-GiB-an-eighth-of-most-commits"),
    pytest.param(SHORT_BYTES, TAILS[1], PART, id="8-GiB-an-eighth-of-most-records"),
    pytest.param(LONG_BYTES, TAILS[0], 1, id="64-GiB-most-commits", marks=LONG),
    pytest.param(LONG_BYTES, TAILS[1], 1, id="64-GiB-most-records", marks=LONG),
    pytest.param(LONG_BYTES, TAILS[2], 1, id="64-GiB-most-of-both", marks=LONG),
]


@pytest.mark.parametrize(("mapped_bytes", "longest", "part"), CASES)
def test_opening_stays_quick(mapped_bytes: int, longest: Tail, part: int) -> None:
    """Goal: a second after a clean stop, five after a kill with the longest tail there can be.

    Method: a map as large as the volume, made by real checkpoints; then a tail of the log that
    has as many commits, as many records, or as many of both as a checkpoint lets come about.
    """
    tail = replace(longest, commits=longest.commits // part)
    with scratch_directory() as directory:
        harness = Harness(directory / "member.img", mapped_bytes)
        trio.run(harness.build)
        harness.close_cleanly()
        clean_s = open_seconds(harness)
        harness.leave(tail)
        killed_s = open_seconds(harness)
    print(f"\nopen after clean stop: cpu_s={clean_s:.3f}; {tail}: cpu_s={killed_s:.3f}")
    assert clean_s < CLEAN_S * SLACK
    assert killed_s < KILLED_S * SLACK / part


def open_seconds(harness: Harness) -> float:
    """Open the pool; returns seconds of the processor."""
    began = time.process_time()
    harness.open_seconds(cold=False)
    return time.process_time() - began
