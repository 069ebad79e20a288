"""One client of a simulated pool: picks volumes and ranges, and knows which errors are allowed."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage.errors import InvalidArgumentError, NotFoundError
from storage.pool import Pool
from storage.volumes.volume import Volume
from tests.crash.harness import MIB
from tests.crash.model import BLOCK
from tests.sim.model import Model

SIZES = (4 * MIB + 160 * BLOCK, MIB, MIB // 4)
"""The first reaches over the end of a map page, 4 MiB."""
VOLUMES_MAX = 5
SNAPSHOTS_MAX = 3
HOT_BLOCKS = (0, 8, 100, 1016)
"""Most writes go near these, so that blocks are overwritten; the last is near the end of a page."""
WRITE_BLOCKS_MAX = 40

ROOM_FOR_SURE_BYTES = 4 * MIB
"""With more free bytes than this, no call may fail for lack of space."""

_NOISE = random.Random("noise").randbytes(2 * MIB)


@dataclass
class Tolerance:
    """The errors allowed in this life, given the faults that are planned for it."""

    space: bool = False
    """Calls may give NoSpaceError."""
    failure: bool = False
    """The pool may fail, and reads may fail."""
    unreadable: bool = False
    """Reads of members may fail, for a while or for good."""
    faults: bool = False
    """Any fault is planned in this life, so that repairs may fail."""
    rot: bool = False
    """One member may hold wrong bytes; other members have a good copy."""


@dataclass
class Client:
    """One client of a pool, at work beside other clients."""

    pool: Pool
    model: Model
    nursery: trio.Nursery
    tolerance: Tolerance
    busy: set[str]
    """Volumes that one client uses alone for now; all clients share this set."""
    names: str
    """Prefix of the names that this client gives; no other client has it."""
    rng: random.Random = field(default_factory=random.Random)
    _named: int = 0

    # -- parts of actions

    async def tries(self, call: Awaitable[object]) -> bool:
        """Await a call; return whether it succeeded. Raises errors that are not allowed."""
        try:
            await call
        except DeviceError as error:
            self.allows(error)
            return False
        return True

    def allows(self, error: DeviceError) -> None:
        """Raise the error again unless the tolerance or a full pool explains it."""
        if isinstance(error, NoSpaceError):
            if self.tolerance.space or self.pool.info().free_bytes <= ROOM_FOR_SURE_BYTES:
                return
        elif self.tolerance.failure:
            return
        raise error

    def volumes(self) -> list[str]:
        return [name for name in self.model.names if name not in self.busy]

    def pick(self) -> str | None:
        names = self.volumes()
        return self.rng.choice(names) if names else None

    @asynccontextmanager
    async def device(self, name: str) -> AsyncIterator[Volume]:
        device = self.pool.open_export(name)
        try:
            yield device
        finally:
            await device.close()

    def blocks(self, name: str) -> tuple[int, int]:
        """Return (first, count) of blocks inside a volume, mostly near `HOT_BLOCKS`."""
        size = min(self.model.names[name].sizes) // BLOCK
        rng = self.rng
        hot = [block for block in HOT_BLOCKS if block < size]
        first = rng.choice(hot) + rng.randrange(12) if rng.random() < 0.8 else rng.randrange(size)
        first = min(first, size - 1)
        count = rng.choice([1, 1, 2, 5, 30, rng.randint(1, WRITE_BLOCKS_MAX)])
        return first, min(count, size - first)

    def any_range(self, name: str) -> tuple[int, int]:
        """Return (offset, length) in bytes inside a volume, not aligned to blocks."""
        first, count = self.blocks(name)
        offset = first * BLOCK + self.rng.randrange(BLOCK)
        return offset, self.rng.randint(1, (first + count) * BLOCK - offset)

    def data(self, length: int) -> bytes:
        """Return bytes that no other write has; some blocks are zeroes, some compressible."""
        blocks = []
        for _ in range(-(-length // BLOCK)):
            kind = self.rng.random()
            if kind < 0.12:
                blocks.append(bytes(BLOCK))
            elif kind < 0.5:
                blocks.append(self.rng.randbytes(16) * (BLOCK // 16))
            else:
                at = self.rng.randrange(len(_NOISE) - BLOCK)
                blocks.append(self.rng.randbytes(16) + _NOISE[at + 16 : at + BLOCK])
        return b"".join(blocks)[:length]

    def new_name(self) -> str:
        self._named += 1
        return f"{self.names}.{self._named}"

    async def change(self, apply: Callable[[], int], call: Callable[[], Awaitable[object]]) -> None:
        """Change the catalogue in the model and, without a pause between, in the pool."""
        if self.pool.failure is not None:
            return
        at = apply()
        try:
            await call()
        except (NotFoundError, InvalidArgumentError):
            # The change is done, but other clients deleted or renamed the volume before the
            # answer was put together.
            if self.model.names is self.model.names_since(at):
                raise
            self.model.is_durable(at)
        except DeviceError as error:
            self.allows(error)
            if isinstance(error, NoSpaceError) and error.__cause__ is None:
                self.model.take_back(at)  # with a cause, the pool makes the change once it has room
        else:
            self.model.is_durable(at)
