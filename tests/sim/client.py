"""One client of a simulated pool: what it may do next, and which answers it allows."""

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
"""Where most writes go, so that blocks are overwritten; the last is near the end of a page."""
WRITE_BLOCKS_MAX = 40

ROOM_FOR_SURE_BYTES = 4 * MIB
"""With more than this nothing may fail for lack of space."""

_NOISE = random.Random("noise").randbytes(2 * MIB)


@dataclass
class Tolerance:
    """What this life may answer, given the faults that are planned for it."""

    space: bool = False
    """There may be no room."""
    failure: bool = False
    """The pool may give up; reads may fail."""
    unreadable: bool = False
    """Members may fail to be read, for a while or for good."""
    faults: bool = False
    """Anything goes wrong in this life, so that repairs may fail."""
    rot: bool = False
    """One member may hold something else than was written to it; others have a good copy."""


@dataclass
class Client:
    """One client of a pool; several work at once."""

    pool: Pool
    model: Model
    nursery: trio.Nursery
    tolerance: Tolerance
    busy: set[str]
    """Volumes that one client has for itself, shared by all."""
    names: str
    """What its names start with; unique."""
    rng: random.Random = field(default_factory=random.Random)
    _named: int = 0

    # -- what actions are made of

    async def tries(self, call: Awaitable[object]) -> bool:
        """Whether it succeeded. An error that nothing explains is raised."""
        try:
            await call
        except DeviceError as error:
            self.allows(error)
            return False
        return True

    def allows(self, error: DeviceError) -> None:
        """Raise an error again that nothing explains."""
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
        """(first, count) inside a volume, mostly where others were."""
        size = min(self.model.names[name].sizes) // BLOCK
        rng = self.rng
        hot = [block for block in HOT_BLOCKS if block < size]
        first = rng.choice(hot) + rng.randrange(12) if rng.random() < 0.8 else rng.randrange(size)
        first = min(first, size - 1)
        count = rng.choice([1, 1, 2, 5, 30, rng.randint(1, WRITE_BLOCKS_MAX)])
        return first, min(count, size - first)

    def any_range(self, name: str) -> tuple[int, int]:
        """(offset, length) inside a volume, in no grain."""
        first, count = self.blocks(name)
        offset = first * BLOCK + self.rng.randrange(BLOCK)
        return offset, self.rng.randint(1, (first + count) * BLOCK - offset)

    def data(self, length: int) -> bytes:
        """Bytes that no other write has, some of them zeroes, some compressible."""
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
        """A change of the catalogue, in the model and, without a pause between, in the pool."""
        if self.pool.failure is not None:
            return
        at = apply()
        try:
            await call()
        except (NotFoundError, InvalidArgumentError):
            # It is done; others deleted or renamed it before the answer was put together.
            if self.model.names is self.model.names_since(at):
                raise
            self.model.is_durable(at)
        except DeviceError as error:
            self.allows(error)
            if isinstance(error, NoSpaceError) and error.__cause__ is None:
                self.model.take_back(at)  # else it is carried out as soon as there is space
        else:
            self.model.is_durable(at)
