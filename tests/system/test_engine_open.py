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

SIZES = [
    pytest.param(8 << 30, id="8-GiB"),
    pytest.param(64 << 30, id="64-GiB", marks=pytest.mark.long),
]


@pytest.mark.parametrize("mapped_bytes", SIZES)
def test_opening_stays_quick(mapped_bytes: int) -> None:
    """Goal: a second after a clean stop, five after a kill with the longest tail there can be.

    Method: a map as large as the volume, made by real checkpoints; then tails of the log that
    have as many commits, as many records, or as many of both as a checkpoint lets come about.
    """
    with scratch_directory() as directory:
        harness = Harness(directory / "member.img", mapped_bytes)
        trio.run(harness.build)
        clean_s = _opened("a clean stop", harness)
        for tail in TAILS:
            seconds = _after(tail, harness)
            assert seconds < KILLED_S * SLACK, f"{tail}: {seconds:.2f} s"
        assert clean_s < CLEAN_S * SLACK


def _after(tail: Tail, harness: Harness) -> float:
    harness.close_cleanly()
    trio.run(harness.add_tail, tail)
    return _opened(tail.name, harness)


def _opened(what: str, harness: Harness) -> float:
    seconds = harness.open_seconds(cold=False)
    print(f"\nopen after {what}: seconds={seconds:.3f}")
    return seconds
