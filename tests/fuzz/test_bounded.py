"""The bounds of the fuzz tests fail for parsers that break them."""

import pytest

from blockdev.errors import DeviceError
from tests.fuzz import bounded
from tests.fuzz.bounded import MEMORY_BYTES_MAX, bounded_memory, value_or_clear_error


def refuses() -> None:
    raise DeviceError("no")


def says_nothing() -> None:
    raise DeviceError("")


def test_a_claimed_length_that_is_allocated_is_noticed() -> None:
    with bounded_memory():
        assert value_or_clear_error(lambda: bytearray(MEMORY_BYTES_MAX // 4), "some")
        with pytest.raises(AssertionError, match="MemoryError"):
            value_or_clear_error(lambda: bytearray(2 * MEMORY_BYTES_MAX), "much")
        with pytest.raises(AssertionError, match="MemoryError"):
            value_or_clear_error(lambda: [bytearray(1 << 20) for _ in range(1 << 10)], "many")
    assert value_or_clear_error(lambda: bytearray(2 * MEMORY_BYTES_MAX), "unbounded")


def test_an_error_is_clear_or_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not value_or_clear_error(refuses, "clear")
    with pytest.raises(AssertionError, match="says nothing"):
        value_or_clear_error(says_nothing, "unclear")
    with pytest.raises(AssertionError, match="ValueError"):
        value_or_clear_error(lambda: int("x"), "bare")
    monkeypatch.setattr(bounded, "SECONDS_MAX", -1.0)
    with pytest.raises(AssertionError, match="takes"):
        value_or_clear_error(refuses, "slow")
