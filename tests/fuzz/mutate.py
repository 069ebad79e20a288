"""Damages bytes and values as disks, bugs and attackers do; one seed gives one damage."""

import random
import struct
from collections.abc import Sequence
from typing import Any

NUMBERS = (
    0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 1 << 16, (1 << 22) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 39) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
"""Numbers at the ends of fields, at changes of sign, and as absurd sizes."""

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, -(1 << 63), (1 << 64) - 1, 1.5, float("nan"), float("inf"), "", "a/b",
    "\ud7ff\n", "x" * 300, b"", b"\xff", [], [[]], {}, {"": {}}, [0] * 300,
)  # fmt: skip


def mutated(rng: random.Random, samples: Sequence[bytes]) -> bytes:
    """Return one of the samples with a few changes, or now and then only noise."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(2000))
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        _CHANGES[rng.randrange(len(_CHANGES))](rng, data, samples)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    form, size = rng.choice([("<B", 1), ("<H", 2), ("<I", 4), ("<Q", 8), (">Q", 8)])
    if len(data) >= size:
        at = rng.randrange(len(data) - size + 1)
        at -= at % size if rng.random() < 0.8 else 0
        struct.pack_into(form, data, at, rng.choice(NUMBERS) % (1 << 8 * size))


def _noise(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    if data:
        at = rng.randrange(len(data))
        length = min(rng.choice([1, 8, 64, 512]), len(data) - at)
        data[at : at + length] = rng.randbytes(length)


def _cut(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice([1, 8, 24, 1 << 20])]


def _repeat(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    piece = data[at : at + rng.choice([1, 8, 24, 32, 56, 128])]
    data[at:at] = piece * rng.choice([1, 2, 30])


def _splice(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    other = rng.choice(samples)
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    data[at : at + 64] = other[start : start + 64]


_CHANGES = (_flip, _flip, _number, _number, _number, _noise, _cut, _repeat, _splice)


def mutated_value(rng: random.Random, value: Any) -> Any:
    """Return a plain value with one node changed somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.1:
            del changed[key]
        elif rng.random() < 0.05:
            changed[rng.choice(["new", 7, b"k"])] = changed.pop(key)
        else:
            changed[key] = mutated_value(rng, value[key])
        return changed
    if isinstance(value, list | tuple) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        items = list(value)
        dice = rng.random()
        if dice < 0.1:
            del items[at]
        elif dice < 0.2:
            items.insert(at, items[rng.randrange(len(items))])
        else:
            items[at] = mutated_value(rng, items[at])
        return items
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.6:
        return rng.choice([value + 1, value - 1, value ^ 1 << rng.randrange(64), *NUMBERS[:8]])
    return rng.choice(ODD_VALUES)
