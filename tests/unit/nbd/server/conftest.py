"""Runs the tests of this folder on a mock clock.

So limits of the server expire only when all tasks wait, and never beside a busy client.
"""

from tests.unit.nbd.mock_clock import pytest_itemcollected

__all__ = ["pytest_itemcollected"]
