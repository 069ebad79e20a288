"""Reads plain values from msgpack and checks their types and ranges (R18).

Parsers turn the ValueError of these checks, and any other error over malformed values, into
DamagedError.
"""

from typing import Any

import msgpack

from storage.errors import DamagedError

NUMBER_MAX = (1 << 63) - 1
"""The largest layer number, size or position: it fits a signed 64-bit integer."""


def whole(value: Any) -> int:
    """Return a count, a size or a number that identifies something. Raises ValueError."""
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise ValueError(f"not a number: {value!r}"[:100])
    return value


def text(value: Any) -> str:
    """Return a name, or a text that a user wrote. Raises ValueError."""
    if type(value) is not str:
        raise ValueError(f"not a text: {value!r}"[:100])
    return value


def amount(value: Any) -> float:
    """Return an amount that may be a fraction, such as a limit. Raises ValueError."""
    if type(value) not in (int, float) or not 0 <= value <= NUMBER_MAX:
        raise ValueError(f"not an amount: {value!r}"[:100])
    return value  # type: ignore[no-any-return]


def encode(value: Any) -> bytes:
    """Return plain values as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def decode(data: bytes) -> Any:
    """Return plain values from msgpack, which checks each claimed length against the data (R18).

    Raises:
        DamagedError: the data is not msgpack.
    """
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise DamagedError(f"not msgpack: {error!r}") from error
