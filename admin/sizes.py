"""Sizes as people write them: read the way qemu-img reads them, and written back short.

K, M, G, T, P and E stand for powers of 1024, in either case; a bare number is bytes.
`1.5G`, `20GiB` and `20 GiB` are fine. `20GB` is refused, because some readers take it for powers of
1000, which is 7 % less (10 % for `20TB`).
"""

import re
from fractions import Fraction

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
PIB = 1024 * TIB

GRAIN_BYTES = 4 * KIB
"""Volumes are mapped in blocks of this size."""
VOLUME_BYTES_MAX = 4 * PIB
"""More than any guest's file system needs; a larger size is taken for a typing mistake."""

_UNITS = "KMGTPE"
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGTPE]?)(?P<tail>iB|B)?", re.IGNORECASE)


class SizeError(ValueError):
    """The text or number is not an acceptable size; the message names one that is."""


def parse_size(text: str) -> int:
    """Return the bytes that `text` stands for; a fraction is rounded to the nearest byte.

    Raises:
        SizeError: `text` is not a number with an optional unit.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise SizeError(f"not a size: {text!r}; write a number and a unit, such as 20G or 512M")
    number, unit, tail = found["number"], found["unit"].upper(), (found["tail"] or "").lower()
    if unit and tail == "b":
        raise SizeError(f"ambiguous unit in {text!r}; write {number}{unit} for powers of 1024")
    if not unit and tail == "ib":
        raise SizeError(f"not a size: {text!r}; write {number}GiB, {number}G or bare bytes")
    if not unit and "." in number:
        raise SizeError(f"a fraction of a byte: {text!r}; give a unit, such as {number}G")
    scale = 1024 ** (_UNITS.index(unit) + 1) if unit else 1
    return round(Fraction(number) * scale)


def volume_size(size_bytes: int, *, limit_bytes: int = VOLUME_BYTES_MAX) -> int:
    """Return `size_bytes` if a volume can have that size.

    Raises:
        SizeError: zero, negative, too large, or not a multiple of 4 KiB.
    """
    if size_bytes <= 0:
        raise SizeError(f"size must be more than zero: {size_bytes}; the smallest is 4K")
    if size_bytes > limit_bytes:
        raise SizeError(f"size is too large: {compact(size_bytes)}; at most {compact(limit_bytes)}")
    below = size_bytes // GRAIN_BYTES * GRAIN_BYTES
    if below != size_bytes:
        above = below + GRAIN_BYTES
        near = [size for size in (below, above) if 0 < size <= limit_bytes]
        near.sort(key=lambda size: abs(size - size_bytes))
        offers = " or ".join(compact(size) for size in near)
        raise SizeError(f"size is not a multiple of 4 KiB: {size_bytes}; the nearest is {offers}")
    return size_bytes


def parse_volume_size(text: str) -> int:
    """Return the bytes that `text` stands for, if a volume can have that size.

    Raises:
        SizeError: `text` is not a size, or a volume cannot have that size.
    """
    if text.strip().startswith("-"):
        raise SizeError(f"size must be more than zero: {text.strip()}; the smallest is 4K")
    return volume_size(parse_size(text))


def compact(size_bytes: int) -> str:
    """The exact size in the largest unit that divides it, to be typed back: `20G`, `12K`."""
    for power in range(len(_UNITS), 0, -1):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{_UNITS[power - 1]}"
    return str(size_bytes)


def human(size_bytes: int) -> str:
    """The size for reading, rounded down to one decimal: `20 GiB`, `1.5 TiB`, `512 B`.

    Rounding down keeps free space from looking larger than it is.
    """
    for power in range(len(_UNITS), 0, -1):
        scale = 1024**power
        if abs(size_bytes) >= scale:
            tenths = size_bytes * 10 // scale
            whole, rest = divmod(tenths, 10)
            return f"{whole}{f'.{rest}' if rest else ''} {_UNITS[power - 1]}iB"
    return f"{size_bytes} B"
