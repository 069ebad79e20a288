"""Fixtures of the tests with real programs and gigabytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.pool_daemon import scratch_directory


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short path on a disk, removed right after the test."""
    with scratch_directory() as path:
        yield path
