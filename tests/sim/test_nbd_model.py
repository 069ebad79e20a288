"""Random requests over four connections, compared with a model of bytes; one seed, one history."""

import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from nbd.server.limits import Limits
from nbd.server.listeners import listen_unix
from nbd.server.server import Server
from storage.pool import MemberDevice, create_pool, open_pool
from storage.settings import PoolSettings
from tests.sim.nbd_peer import (
    CACHE,
    DF,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    WRITE,
    ZEROES,
    Mode,
    NbdPeer,
    nbd_peer,
)

CONNECTIONS = 4
WORKERS = 8
"""Requests in flight on each connection."""
SIZE_BYTES = 16 << 20
STRIPE_BYTES = SIZE_BYTES // (CONNECTIONS * WORKERS)
HANGS_AFTER_S = 600
ROUND = 25
"""Overlapping requests of each worker between two reads of the whole range."""
SMALL = PoolSettings(extent_cache_bytes=64 << 10, buffer_bytes=4 << 20, flush_interval_s=0.02)
"""Small caches and quick flushes, so that reads of written data soon go to the member."""
EINVAL, ENOSPC, ENOTSUP = 22, 28, 95
KINDS = (READ, READ, READ, WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH, CACHE, STATUS)


class Handle(MemoryDevice):
    """One memory for many connections, which may close it."""

    async def close(self) -> None:
        pass


class Disk(MemoryDevice):
    """A member whose operations often wait, so that requests overlap."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._rng = random.Random(7)

    def try_read(self, offset: int, length: int) -> bytes:
        if self._rng.random() < 0.5:
            return None  # type: ignore[return-value]
        return super().try_read(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        for _ in range(self._rng.randint(1, 4)):
            await trio.lowlevel.checkpoint()
        return super().try_read(offset, length)


class Exports:
    def __init__(self, memory: BlockDevice, pool: object) -> None:
        self._memory = memory
        self._pool = pool

    def names(self) -> list[str]:
        return ["memory", "volume"]

    async def open(self, name: str) -> BlockDevice:
        if name == "memory":
            return self._memory
        device: BlockDevice = self._pool.open_export("volume")  # type: ignore[attr-defined]
        return device


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Path]:
    path = folder / "nbd.sock"
    member = MemberDevice(Disk(256 << 20), "member", "host")
    await create_pool([member], copies=1, segment_bytes=1 << 20)
    async with open_pool([member], settings=SMALL) as pool:
        await pool.management.create_volume("volume", SIZE_BYTES)
        # A tight bound, so that requests also wait for memory.
        limits = Limits(memory_bytes_max=2 << 20)
        server = Server(Exports(Handle(SIZE_BYTES), pool), limits)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, [listen_unix(path)])
            yield path
            with trio.fail_after(HANGS_AFTER_S):
                while server.clients():
                    await trio.sleep(0.01)
            assert server._service.memory.used_bytes == 0
            nursery.cancel_scope.cancel()


def some_range(rng: random.Random, start: int, size: int) -> tuple[int, int]:
    """Return (offset, length) in bytes: mostly short, sometimes whole blocks, sometimes long."""
    length = rng.choice((rng.randint(1, 5000), rng.randint(1, 3) * 4096, rng.randint(1, size)))
    if length > 100_000 and rng.random() < 0.7:
        length = rng.randint(1, 20_000)
    offset = rng.randint(0, size - length)
    if rng.random() < 0.5:
        offset &= -4096
        if length >= 4096:
            length &= -4096
    return start + offset, length


@dataclass
class Alone:
    """A worker that uses a stripe alone, and knows every byte of it."""

    peer: NbdPeer
    rng: random.Random
    start: int
    mode: Mode
    model: bytearray = field(default_factory=lambda: bytearray(STRIPE_BYTES))

    async def run(self, count: int) -> None:
        for _ in range(count):
            kind = self.rng.choice(KINDS)
            offset, length = some_range(self.rng, self.start, STRIPE_BYTES)
            if self.rng.random() < 0.02:
                await self.refused(kind, length)
            else:
                await self.step(kind, offset, length)
        await self.check(self.start, STRIPE_BYTES, 0)

    async def step(self, kind: int, offset: int, length: int) -> None:
        rng, peer, at = self.rng, self.peer, offset - self.start
        fua = FUA * (rng.random() < 0.1)
        if kind == READ:
            df = DF * (self.mode is not Mode.SIMPLE and rng.random() < 0.3)
            await self.check(offset, length, df | fua)
        elif kind == WRITE:
            data = rng.randbytes(length)
            assert (await peer.call(WRITE, offset, length, flags=fua, data=data)).error == 0
            self.model[at : at + length] = data
        elif kind == ZEROES:
            flags = fua | NO_HOLE * rng.randint(0, 1) | FAST_ZERO * rng.randint(0, 1)
            error = (await peer.call(ZEROES, offset, length, flags=flags)).error
            assert error == 0 or (error == ENOTSUP and flags & FAST_ZERO)
            if not error:
                self.model[at : at + length] = bytes(length)
        elif kind == TRIM:
            assert (await peer.call(TRIM, offset, length, flags=fua)).error == 0
            seen = (await peer.call(READ, offset, length)).data
            new = np.frombuffer(seen, np.uint8)
            old = np.frombuffer(self.model, np.uint8, length, at).copy()
            assert ((new == old) | (new == 0)).all()
            self.model[at : at + length] = seen
        elif kind == STATUS:
            await self.status(offset, length, REQ_ONE * rng.randint(0, 1) | fua)
        elif kind == FLUSH:
            assert (await peer.call(FLUSH, flags=fua)).error == 0
        else:
            assert (await peer.call(CACHE, offset, length, flags=fua)).error == 0

    async def check(self, offset: int, length: int, flags: int) -> None:
        answer = await self.peer.call(READ, offset, length, flags=flags)
        at = offset - self.start
        assert answer.error == 0
        # Compared outside the assertion, because pytest takes minutes to explain how a MiB differs.
        is_right = bytes(answer.data) == self.model[at : at + length]
        assert is_right, f"wrong bytes: {offset=} {length=} {flags=}"

    async def status(self, offset: int, length: int, flags: int) -> None:
        with_filter = self.mode is Mode.EXTENDED and self.rng.random() < 0.3
        only = struct.pack(">QI", length, 0) if with_filter else b""
        answer = await self.peer.call(STATUS, offset, length, flags=flags, data=only)
        assert answer.error == (EINVAL if self.mode is Mode.SIMPLE else 0)
        at = offset - self.start
        for run, state in answer.extents:
            if state & 2:
                assert not any(self.model[at : at + run]), f"not zero: {at + self.start} {run}"
            at += run

    async def refused(self, kind: int, length: int) -> None:
        if kind == FLUSH:
            return
        offset = self.rng.choice((SIZE_BYTES - length + 1, SIZE_BYTES, 2**63, 2**64 - length))
        data = bytes(length) if kind == WRITE else b""
        error = (await self.peer.call(kind, offset, length, data=data)).error
        assert error == (ENOSPC if kind in (WRITE, ZEROES) else EINVAL)


@dataclass
class Change:
    """A request that changes bytes; `end` is later than any time until it is answered."""

    start: int
    first: int
    last: int
    value: int
    sure: bool = True  # a trim need not do anything
    end: int = 1 << 60


class Together:
    """The model of bytes that many workers write at once, each write with a value of its own."""

    def __init__(self, base: int, size: int) -> None:
        self.base, self.size = base, size
        self.now = 0
        self.settled: NDArray[np.uint8] = np.zeros(size, np.uint8)
        self.changes: list[Change] = []

    def tick(self) -> int:
        self.now += 1
        return self.now

    def begin(self, offset: int, length: int, value: int, *, sure: bool = True) -> Change:
        first = offset - self.base
        change = Change(self.tick(), first, first + length, value, sure)
        self.changes.append(change)
        return change

    def explains(self, offset: int, data: bytes, began: int) -> bool:
        """Whether a read that began at `began` and ends now may return these bytes.

        A read may see a change unless another began after its end and ended before the read began.
        """
        first = offset - self.base
        last = first + len(data)
        seen = np.frombuffer(data, np.uint8)
        newest = np.full(len(data), -1, np.int64)
        touching = [one for one in self.changes if one.first < last and first < one.last]
        for one in touching:
            if one.end < began and one.sure:
                part = slice(max(one.first - first, 0), one.last - first)
                np.maximum(newest[part], one.start, out=newest[part])
        good = (seen == self.settled[first:last]) & (newest < 0)
        for one in touching:
            part = slice(max(one.first - first, 0), one.last - first)
            good[part] |= (seen[part] == one.value) & (newest[part] <= one.end)
        return bool(good.all())

    def settle(self, data: bytes) -> None:
        self.settled = np.frombuffer(data, np.uint8).copy()
        self.changes.clear()

    def free_values(self) -> list[int]:
        return [value for value in range(1, 256) if not (self.settled == value).any()]


Connect = Callable[[], Awaitable[NbdPeer]]


async def overlap(peers: list[NbdPeer], connect: Connect, rng: random.Random, rounds: int) -> int:
    """Use all connections at once on the same 128 KiB, and now and then replace a connection by a
    new one; return the number of requests."""
    base, size = 3 << 20, 128 << 10
    model = Together(base, size)
    assert (await peers[0].call(ZEROES, base, size)).error == 0
    count = 0

    async def worker(peer: NbdPeer, rng: random.Random, values: list[int]) -> None:
        nonlocal count
        for _ in range(ROUND):
            count += 1
            kind = rng.choice((READ, READ, READ, WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH, FLUSH))
            offset, length = some_range(rng, base, size)
            if kind == READ:
                began = model.tick()
                answer = await peer.call(READ, offset, length)
                assert answer.error == 0
                assert model.explains(offset, bytes(answer.data), began), f"{offset=} {length=}"
                continue
            if kind == FLUSH or (kind == WRITE and not values):
                assert (await peer.call(FLUSH)).error == 0
                continue
            value = values.pop() if kind == WRITE else 0
            data = bytes([value]) * length if kind == WRITE else b""
            change = model.begin(offset, length, value, sure=kind != TRIM)
            assert (await peer.call(kind, offset, length, data=data)).error == 0
            change.end = model.tick()

    for _ in range(rounds):
        free = model.free_values()
        share = len(free) // (CONNECTIONS * WORKERS)
        async with trio.open_nursery() as nursery:
            for index in range(CONNECTIONS * WORKERS):
                values = free[index * share : (index + 1) * share]
                own = random.Random(rng.random())
                nursery.start_soon(worker, peers[index % CONNECTIONS], own, values)
        began = model.tick()
        data = bytes((await peers[0].call(READ, base, size)).data)
        assert model.explains(base, data, began)
        model.settle(data)
        everywhere = [bytes((await peer.call(READ, base, size)).data) for peer in peers]
        assert all(one == data for one in everywhere), "one disk for all"
        leaving = rng.randrange(CONNECTIONS)
        await peers[leaving].leave(goodbye=rng.random() < 0.5)
        peers[leaving] = await connect()
    return count


async def history(folder: Path, name: str, mode: Mode, seed: int, count: int) -> None:
    rng = random.Random(f"{seed} {name} {mode}")
    async with served(folder) as path, AsyncExitStack() as stack:

        async def connect() -> NbdPeer:
            stream = await trio.open_unix_socket(path)
            return await stack.enter_async_context(nbd_peer(stream, mode, name.encode()))

        peers = [await connect() for _ in range(CONNECTIONS)]
        workers = [
            Alone(peers[index % CONNECTIONS], random.Random(rng.random()), at, mode)
            for index, at in enumerate(range(0, SIZE_BYTES, STRIPE_BYTES))
        ]
        alone = count * 3 // 4 // len(workers)
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(worker.run, alone)
        done = alone * len(workers)
        rounds = -(-(count - done) // (CONNECTIONS * WORKERS * ROUND))
        done += await overlap(peers, connect, rng, rounds)
        assert done >= count


COMBINATIONS = [(name, mode) for name in ("memory", "volume") for mode in Mode]


@pytest.mark.parametrize(("name", "mode"), COMBINATIONS)
async def test_every_byte_is_as_the_model_says(tmp_path: Path, name: str, mode: Mode) -> None:
    """48,000 requests over all parameters."""
    print("seed=1")
    await history(tmp_path, name, mode, 1, 48_000 // len(COMBINATIONS))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize(("name", "mode"), COMBINATIONS)
async def test_every_byte_many_times(tmp_path: Path, name: str, mode: Mode, seed: int) -> None:
    print(f"{seed=}")
    await history(tmp_path, name, mode, seed, 100_000)


def test_the_model_would_notice() -> None:
    """The model does not explain old values, torn values and values that were never written."""
    model = Together(0, 100)
    first = model.begin(0, 50, 1)
    assert model.explains(0, bytes([1] * 20 + [0] * 30), model.tick())
    first.end = model.tick()
    assert not model.explains(0, bytes([1] * 20 + [0] * 30), model.tick())
    second = model.begin(10, 10, 2)
    third = model.begin(10, 10, 3)
    second.end = model.tick()
    assert model.explains(10, bytes([2] * 5 + [3] * 5), model.tick())
    assert not model.explains(10, bytes([1] * 10), model.tick())
    third.end = model.tick()
    assert model.explains(10, bytes([2] * 5 + [3] * 5), model.tick())
    assert not model.explains(10, bytes([4] * 10), model.tick())
