"""A seeded workload over a whole pool: writes of every kind, flushes, snapshots, clones, reopening.

One task takes all steps, so the order of the steps is the order of the log; flushes, checkpoints
and cleaning also run beside it. The history notes each step before the engine is asked for it.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from blockdev.simulation.world import SimulatedWorld
from storage.errors import InvalidArgumentError
from storage.pool import Pool, PoolSettings
from storage.volumes.volume import Volume
from tests.crash import model
from tests.crash.harness import MIB, SETTINGS, Shape, opened
from tests.crash.model import BLOCK, History

VOLUMES = {"root": 5 * MIB, "data": 2 * MIB}
"""The first reaches over the end of a map page, 4 MiB."""
VOLUMES_MAX = 5
SNAPSHOTS_MAX = 3
WRITE_BLOCKS_MAX = 40
HOT_BLOCKS = (0, 8, 100, 1016)
"""Most writes go near these, so that blocks are overwritten; the last is near the end of a page."""

_WEIGHTS = {
    "write_blocks": 12, "write_part": 8, "write_across": 5, "write_fua": 3, "burst": 5,
    "zeroes": 4, "trim": 4,
    "flush": 6, "flush_beside": 3, "check_read": 4, "wait": 2, "checkpoint": 3, "snapshot": 3,
    "clone": 2, "rollback": 2, "delete_snapshot": 3, "create": 1, "delete": 1, "resize": 1,
    "fork": 1, "group": 1, "shrink": 1, "clean": 6,
}  # fmt: skip


CLEANING = {"burst": 30, "clean": 20, "checkpoint": 6, "snapshot": 5, "trim": 6}
"""Weights for many overwritten and many moved blocks."""

CHECKPOINTS = {"checkpoint": 20, "clone": 4, "snapshot": 5, "delete_snapshot": 4, "clean": 10}
"""Weights for checkpoints that write pages of many layers."""

FLATTENING = {
    "clone": 8, "fork": 6, "flatten": 14, "wait": 8, "snapshot": 6, "delete_snapshot": 6,
    "checkpoint": 5,
}  # fmt: skip
"""Weights for clones that are flattened beside all other actions."""


class Workload:
    """Goes on from the state that is the history's tip; `seed` decides every action."""

    def __init__(
        self, history: History, seed: object, weights: dict[str, int] | None = None
    ) -> None:
        self.history = history
        self._rng = random.Random(f"workload {seed}")
        weighted = _WEIGHTS | (weights or {})
        self._actions = list(weighted)
        self._weights = list(weighted.values())
        self._names = 0
        self._seed = seed

    async def run(self, pool: Pool, actions: int) -> None:
        """Take so many actions in an open pool; no handle stays open."""
        async with trio.open_nursery() as nursery:
            self._pool, self._nursery = pool, nursery
            self._returned = len(self.history.steps)
            for name, size_bytes in VOLUMES.items():
                if name not in self.history.tip:
                    await self._durably(
                        model.create(name, size_bytes),
                        pool.management.create_volume(name, size_bytes),
                    )
            for _ in range(actions):
                [action] = self._rng.choices(self._actions, self._weights)
                await getattr(self, f"_{action}")()
                self._returned = len(self.history.steps)

    # -- writes

    async def _write_blocks(self, *, fua: bool = False) -> None:
        name, device = self._pick()
        block, count = self._range(name)
        data = [self._block() for _ in range(count)]
        for i, each in enumerate(data):
            self.history.begin(model.put_block(name, block + i, each))
        mark = len(self.history.steps)
        if fua or not device.try_write(block * BLOCK, b"".join(data)):
            await device.write(block * BLOCK, b"".join(data), fua=fua)
        if fua:
            self.history.is_durable(mark)
        await device.close()

    async def _burst(self) -> None:
        """Write several commits, all of which the next flush must make durable."""
        for _ in range(self._rng.randint(3, 8)):
            await self._write_blocks()

    async def _write_fua(self) -> None:
        await self._write_blocks(fua=True)

    async def _write_part(self) -> None:
        name, device = self._pick()
        block, _ = self._range(name)
        within = self._rng.randrange(BLOCK)
        length = self._rng.randint(1, BLOCK - within)
        await self._write_bytes(name, device, block * BLOCK + within, length)

    async def _write_across(self) -> None:
        name, device = self._pick()
        block, count = self._range(name)
        offset = block * BLOCK + self._rng.randrange(1, BLOCK)
        length = min(count * BLOCK + self._rng.randrange(BLOCK), device.size_bytes - offset)
        await self._write_bytes(name, device, offset, length)

    async def _write_bytes(self, name: str, device: Volume, offset: int, length: int) -> None:
        blocks = -(-length // BLOCK)
        data = b"".join(self._block() for _ in range(blocks))[:length]
        for at, piece in pieces(offset, data):
            if len(piece) == BLOCK:
                self.history.begin(model.put_block(name, at // BLOCK, piece))
            else:
                self.history.begin(model.merge(name, at, piece))
        await device.write(offset, data)
        await device.close()

    async def _zeroes(self) -> None:
        name, device = self._pick()
        block, count = self._range(name)
        offset = block * BLOCK + self._rng.choice([0, 0, self._rng.randrange(BLOCK)])
        length = min(self._rng.randint(1, count * BLOCK), device.size_bytes - offset)
        first, end = -(-offset // BLOCK), (offset + length) // BLOCK
        if first >= end:
            for at, piece in pieces(offset, bytes(length)):
                self.history.begin(model.merge(name, at, piece))
        else:
            if offset < first * BLOCK:
                self.history.begin(model.merge(name, offset, bytes(first * BLOCK - offset)))
            self.history.begin(model.zero_blocks(name, first, end))
            if offset + length > end * BLOCK:
                self.history.begin(
                    model.merge(name, end * BLOCK, bytes(offset + length - end * BLOCK))
                )
        await device.write_zeroes(offset, length)
        await device.close()

    async def _trim(self) -> None:
        name, device = self._pick()
        block, count = self._range(name)
        if self._rng.random() < 0.1:
            block, count = 0, device.size_bytes // BLOCK
        self.history.begin(model.zero_blocks(name, block, block + count))
        await device.trim(block * BLOCK, count * BLOCK)
        await device.close()

    # -- durability and time

    async def _flush(self) -> None:
        # A flush covers writes that returned before it was called, not a write that runs beside it.
        mark = self._returned
        await self._pool.flush()
        self.history.is_durable(mark)

    async def _flush_beside(self) -> None:
        self._nursery.start_soon(self._flush)

    async def _wait(self) -> None:
        await trio.sleep(self._rng.choice([0, 0.3, 2.5, 25]))

    async def _checkpoint(self) -> None:
        if self._rng.random() < 0.5:
            await self._pool.checkpoint()
        else:
            self._nursery.start_soon(self._pool.checkpoint)

    async def _clean(self) -> None:
        """Run a round of the cleaner, sometimes beside the other actions."""

        async def clean() -> None:
            await self._pool.cleaner.round()
            if self._rng.random() < 0.6:
                await self._pool.checkpoint()

        if self._rng.random() < 0.5:
            await clean()
        else:
            self._nursery.start_soon(clean)

    async def _check_read(self) -> None:
        name = self._rng.choice(list(self.history.tip))
        image = self.history.tip[name].head
        device = self._pool.open_export(name)
        offset = self._rng.randrange(image.size_bytes)
        length = self._rng.randint(1, min(60 * BLOCK, image.size_bytes - offset))
        found = bytes(await device.read(offset, length))
        assert found == image.read(offset, length), f"{name} reads wrong: {offset=} {length=}"
        await device.close()

    # -- the catalogue

    async def _durably(self, step: model.Step, operation: Awaitable[object]) -> None:
        self.history.begin(step)
        mark = len(self.history.steps)
        await operation
        self.history.is_durable(mark)

    async def _snapshot(self) -> None:
        volume = self._rng.choice(list(self.history.tip))
        if len(self.history.tip[volume].snapshots) < SNAPSHOTS_MAX:
            name = self._new_name("s")
            await self._durably(
                model.snapshot(volume, name), self._pool.management.create_snapshot(volume, name)
            )

    async def _clone(self) -> None:
        if (found := self._any_snapshot()) and len(self.history.tip) < VOLUMES_MAX:
            new = self._new_name("c")
            await self._durably(model.clone(*found, new), self._pool.management.clone(*found, new))

    async def _fork(self) -> None:
        if len(self.history.tip) < VOLUMES_MAX:
            volume, new = self._rng.choice(list(self.history.tip)), self._new_name("f")
            await self._durably(
                model.fork(volume, new), self._pool.management.clone(volume, None, new)
            )

    async def _group(self) -> None:
        tip = self.history.tip
        volumes = [name for name in tip if len(tip[name].snapshots) < SNAPSHOTS_MAX]
        if volumes:
            name = self._new_name("g")
            operation = self._pool.management.create_snapshots(volumes, name)
            await self._durably(model.group(volumes, name), operation)

    async def _shrink(self) -> None:
        name = self._rng.choice(list(self.history.tip))
        blocks = self.history.tip[name].head.size_bytes // BLOCK
        size = self._rng.randint(max(1, blocks - 300), blocks) * BLOCK
        if name in VOLUMES or size == blocks * BLOCK:
            return
        zero, cut = model.shrink(name, size)
        self.history.begin(zero)
        await self._durably(cut, self._pool.management.resize_volume(name, size, shrink=True))

    async def _flatten(self) -> None:
        """Flatten a clone in the background, or stop that: no content changes."""
        name = self._rng.choice(list(self.history.tip))
        with suppress(InvalidArgumentError):
            await self._pool.management.flatten(name, on=self._rng.random() < 0.9)

    async def _rollback(self) -> None:
        if found := self._any_snapshot():
            await self._durably(model.rollback(*found), self._pool.management.rollback(*found))

    async def _delete_snapshot(self) -> None:
        if found := self._any_snapshot():
            await self._durably(
                model.delete_snapshot(*found), self._pool.management.delete_snapshot(*found)
            )

    async def _create(self) -> None:
        if len(self.history.tip) < VOLUMES_MAX:
            name, size = self._new_name("v"), self._rng.randint(1, 2 * MIB // BLOCK) * BLOCK
            await self._durably(
                model.create(name, size), self._pool.management.create_volume(name, size)
            )

    async def _delete(self) -> None:
        """Delete a volume with its snapshots, also one that has clones."""
        for name in self.history.tip:
            if name not in VOLUMES:
                operation = self._pool.management.delete_volume(name, snapshots=True)
                await self._durably(model.delete(name), operation)
                return

    async def _resize(self) -> None:
        name = self._rng.choice(list(self.history.tip))
        size = self.history.tip[name].head.size_bytes + self._rng.randint(1, 64) * BLOCK
        await self._durably(
            model.resize(name, size), self._pool.management.resize_volume(name, size)
        )

    # -- choices

    def _pick(self) -> tuple[str, Volume]:
        name = self._rng.choice(list(self.history.tip))
        return name, self._pool.open_export(name)

    def _range(self, name: str) -> tuple[int, int]:
        """Return (first block, blocks) inside a volume, mostly near `HOT_BLOCKS`."""
        blocks = self.history.tip[name].head.size_bytes // BLOCK
        rng = self._rng
        hot = [block for block in HOT_BLOCKS if block < blocks]
        block = rng.choice(hot) + rng.randrange(12) if rng.random() < 0.8 else rng.randrange(blocks)
        block = min(block, blocks - 1)
        count = rng.choice([1, 1, 2, 5, 30, rng.randint(1, WRITE_BLOCKS_MAX)])
        return block, min(count, blocks - block)

    def _block(self) -> bytes:
        kind = self._rng.random()
        if kind < 0.15:
            return bytes(BLOCK)
        if kind < 0.6:
            return self._rng.randbytes(16) * (BLOCK // 16)
        return self._rng.randbytes(BLOCK)

    def _all_snapshots(self) -> list[tuple[str, str]]:
        tip = self.history.tip
        return [(volume, name) for volume in tip for name in tip[volume].snapshots]

    def _any_snapshot(self) -> tuple[str, str] | None:
        found = self._all_snapshots()
        return self._rng.choice(found) if found else None

    def _new_name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}-{self._seed}"


def sessions(
    world: SimulatedWorld, shape: Shape, workload: Workload, actions: tuple[int, ...],
    settings: PoolSettings = SETTINGS,
) -> Callable[[], Awaitable[None]]:  # fmt: skip
    """Return a life: one session for each number of actions, each ended by a clean stop."""

    async def body() -> None:
        for session, count in enumerate(actions):
            async with opened(world, shape, settings, session) as pool:
                await workload.run(pool, count)
            workload.history.is_durable(len(workload.history.steps))

    return body


def pieces(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """Return (offset, bytes) of the parts of a write, cut at blocks, in the engine's order."""
    pieces = []
    at = 0
    while at < len(data):
        length = min(len(data) - at, BLOCK - (offset + at) % BLOCK)
        pieces.append((offset + at, data[at : at + length]))
        at += length
    return pieces
