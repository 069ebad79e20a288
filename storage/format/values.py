"""Plain values out of msgpack: of the type and in the range that they must have (R18).

Whoever reads them turns a ValueError, and whatever else does not fit, into DamagedError.
"""

from typing import Any

import msgpack

from storage.errors import DamagedError

NUMBER_MAX = (1 << 63) - 1
"""Of layers, sizes and positions: what every reader can hold."""


def whole(value: Any) -> int:
    """Return a count, a size or a number that identifies something. Raises ValueError."""
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise ValueError(f"not a number: {value!r}"[:100])
    return value


def text(value: Any) -> str:
    """Return a name or what somebody wrote. Raises ValueError."""
    if type(value) is not str:
        raise ValueError(f"not a text: {value!r}"[:100])
    return value


def amount(value: Any) -> float:
    """Return what may be measured, whole or not. Raises ValueError."""
    if type(value) not in (int, float) or not 0 <= value <= NUMBER_MAX:
        raise ValueError(f"not an amount: {value!r}"[:100])
    return value  # type: ignore[no-any-return]


def encode(value: Any) -> bytes:
    """Plain values as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def decode(data: bytes) -> Any:
    """Plain values from msgpack; every length it claims is held against the bytes there are (R18).

    Raises:
        DamagedError: not msgpack.
    """
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise DamagedError(f"not msgpack: {error!r}") from error
