"""Parts of the model of a whole pool: volumes, snapshots, sessions, and the data of writes."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from storage.errors import InvalidArgumentError
from storage.pool import Pool
from tests.crash import model
from tests.crash.model import BLOCK

CHECKPOINTS_TO_SETTLE = 12
FLATTEN_S_MAX = 600

Action = Callable[[Pool], Awaitable[None]]


@dataclass
class Snap:
    """A snapshot; `line` are the numbers of its ancestors, as of a volume."""

    number: int
    size_bytes: int
    line: tuple[int, ...]
    unsure: bool = False


@dataclass
class Vol:
    """A volume; `line` are the numbers of the snapshots that are its ancestors, also of deleted
    snapshots and of the unnamed ones that cloning a volume without a snapshot makes.
    """

    size_bytes: int
    line: tuple[int, ...] = ()
    unsure: bool = False
    """Whether the volume may have lost the beginning of its line: when one of several descendants
    of an unnamed snapshot is flattened, the pool decides which of them that snapshot goes to."""
    snaps: dict[str, Snap] = field(default_factory=dict)


@dataclass
class Session:
    """The actions between one opening of the pool and its end."""

    actions: list[Action] = field(default_factory=list)
    cut: int | None = None
    """The seed of the power cut that ends the session; None for a clean stop."""


async def settle(pool: Pool) -> None:
    for _ in range(CHECKPOINTS_TO_SETTLE):
        await pool.checkpoint()


async def flattened(name: str, pool: Pool) -> None:
    """Flatten a volume, wait for the end, and flush the log; no content changes."""
    try:
        await pool.management.flatten(name)
    except InvalidArgumentError:
        return  # because the volume is independent already
    with trio.fail_after(FLATTEN_S_MAX):
        while pool.management.volume(name).flattening is not None:
            await trio.sleep(0.5)
    await pool.flush()


def range_of(coin: random.Random, size: int) -> tuple[int, int]:
    """Return (offset, length) in bytes inside a volume, mostly whole blocks at few places."""
    blocks = size // BLOCK
    first = coin.choice([0, 5, 1016, coin.randrange(blocks)]) + coin.randrange(10)
    first = min(first, blocks - 1)
    offset = first * BLOCK + coin.choice([0, 0, coin.randrange(BLOCK)])
    length = coin.choice([1, 2, 9, 40]) * BLOCK - coin.choice([0, 0, coin.randrange(BLOCK)])
    return offset, min(length, size - offset)


def data_of(coin: random.Random, length: int) -> bytes:
    kind = coin.random()
    if kind < 0.1:
        return bytes(length)
    if kind < 0.5:
        return (coin.randbytes(64) * (length // 64 + 1))[:length]
    return coin.randbytes(length)


def put(name: str, offset: int, piece: bytes) -> model.Step:
    if len(piece) == BLOCK:
        return model.put_block(name, offset // BLOCK, piece)
    return model.merge(name, offset, piece)
