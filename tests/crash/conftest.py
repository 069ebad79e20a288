"""Pytest fixtures of the crash tests."""

from collections.abc import Iterator

import pytest

from tests.sim.deterministic import garbage_collected_between_runs, superblocks_decoded_once


@pytest.fixture(autouse=True, scope="package")
def quicker_openings() -> Iterator[None]:
    """Make openings quicker: each test opens a pool hundreds of times."""
    with superblocks_decoded_once(), garbage_collected_between_runs():
        yield
