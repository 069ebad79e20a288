"""Runs the tests of this folder on a mock clock."""

from tests.unit.nbd.mock_clock import pytest_itemcollected

__all__ = ["pytest_itemcollected"]
