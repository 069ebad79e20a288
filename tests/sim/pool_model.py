"""What the model of a whole pool is made of: volumes, snapshots, and what is written to them."""

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
    """A snapshot; `line` are the numbers of those that it stands on, as of a volume."""

    number: int
    size_bytes: int
    line: tuple[int, ...]
    unsure: bool = False


@dataclass
class Vol:
    """A volume; `line` are the numbers of the snapshots that it stands on, also of deleted ones,
    and of what volumes were when they were cloned without one.
    """

    size_bytes: int
    line: tuple[int, ...] = ()
    unsure: bool = False
    """Whether it may have been cut off from the beginning of its line: when one of several that
    stand on something without a name is flattened, the pool decides whose it was."""
    snaps: dict[str, Snap] = field(default_factory=dict)


@dataclass
class Session:
    """What is done between one opening and the end of it."""

    actions: list[Action] = field(default_factory=list)
    cut: int | None = None
    """Ends with a power cut, with this seed for its coins, or with a clean stop."""


async def settle(pool: Pool) -> None:
    for _ in range(CHECKPOINTS_TO_SETTLE):
        await pool.checkpoint()


async def flattened(name: str, pool: Pool) -> None:
    """Have a volume stand alone, and the log know it; nothing changes that can be read."""
    try:
        await pool.management.flatten(name)
    except InvalidArgumentError:
        return  # it does already
    with trio.fail_after(FLATTEN_S_MAX):
        while pool.management.volume(name).flattening is not None:
            await trio.sleep(0.5)
    await pool.flush()


def range_of(coin: random.Random, size: int) -> tuple[int, int]:
    """(offset, length) inside a volume, mostly whole blocks, mostly where others were."""
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
