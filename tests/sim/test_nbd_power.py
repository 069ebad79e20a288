"""Data acknowledged as durable on any connection is there after a power cut."""

import random
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from blockdev.device import BlockDevice
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.power import PowerCut
from blockdev.simulation.world import SimulatedWorld
from nbd.errors import UnknownExportError
from nbd.server.listeners import listen_unix
from nbd.server.server import Server
from storage.pool import MemberDevice, Pool, create_pool, open_pool
from storage.settings import PoolSettings
from storage.volumes.volume import Volume
from tests.sim.nbd_peer import FLUSH, FUA, WRITE, ZEROES, Mode, NbdPeer, nbd_peer

MIB, BLOCK = 1 << 20, 4096
CONNECTIONS, WORKERS = 4, 4
BLOCKS = 128
"""Blocks of the volume; each worker writes to a share of its own."""
SETTINGS = PoolSettings(flush_interval_s=0.2)


@dataclass
class History:
    """The values that each block may hold: the newest value that is surely durable, then later
    values, each with the moment when its write was answered."""

    values: list[list[tuple[int, float]]] = field(
        default_factory=lambda: [[(0, 0.0)] for _ in range(BLOCKS)]
    )
    now: int = 0

    def tick(self) -> int:
        self.now += 1
        return self.now

    def begin(self, block: int, value: int) -> None:
        self.values[block].append((value, float("inf")))

    def answered(self, block: int, *, durable: bool) -> None:
        values = self.values[block]
        values[-1] = values[-1][0], self.tick()
        if durable:
            del values[:-1]

    def flushed(self, sent: int) -> None:
        """A flush was answered: writes that were answered before it was sent are durable."""
        for values in self.values:
            while len(values) > 1 and values[1][1] < sent:
                del values[0]

    def settle(self, content: bytes) -> None:
        for block, values in enumerate(self.values):
            data = content[block * BLOCK : (block + 1) * BLOCK]
            (value,) = struct.unpack_from(">Q", data)
            is_whole = data == stamped(value)
            assert is_whole, f"{block=}: torn"
            assert value in [one for one, _ in values], f"{block=}: {value} of {values}"
            values[:] = [(value, 0.0)]


def stamped(value: int) -> bytes:
    return struct.pack(">Q", value) * (BLOCK // 8)


class Exports:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def names(self) -> list[str]:
        return ["volume"]

    async def open(self, name: str) -> BlockDevice:
        if name != "volume":
            raise UnknownExportError
        return self._pool.open_export(name)


def member(world: SimulatedWorld) -> MemberDevice:
    return MemberDevice(world.disks[0], "disk", "host")


@asynccontextmanager
async def served(world: SimulatedWorld, path: Path, seed: str) -> AsyncIterator[list[NbdPeer]]:
    rng = random.Random(seed)
    async with open_pool([member(world)], settings=SETTINGS) as pool:
        server = Server(Exports(pool))
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            await nursery.start(server.serve, [listen_unix(path)])
            peers = []
            for _ in range(CONNECTIONS):
                peer = nbd_peer(
                    await trio.open_unix_socket(path), rng.choice(list(Mode)), b"volume"
                )
                peers.append(await stack.enter_async_context(peer))
            yield peers
            nursery.cancel_scope.cancel()


async def work(peer: NbdPeer, history: History, blocks: range, rng: random.Random) -> None:
    while True:
        sent = history.tick()
        block, fua = rng.choice(blocks), FUA * (rng.random() < 0.03)
        kind = rng.choices((WRITE, ZEROES, FLUSH), (20, 2, 1))[0]
        if kind == FLUSH:
            assert (await peer.call(FLUSH)).error == 0
            history.flushed(sent)
            continue
        value = sent if kind == WRITE else 0
        history.begin(block, value)
        data = stamped(value) if value else b""
        assert (await peer.call(kind, block * BLOCK, BLOCK, flags=fua, data=data)).error == 0
        history.answered(block, durable=bool(fua))


async def after(world: SimulatedWorld, operations: int) -> None:
    """Wait until the disk has done so many more operations."""
    reached = trio.Event()
    last = world.operations + operations

    def count() -> None:
        if world.operations >= last:
            reached.set()

    world.at_operation = count
    await reached.wait()


async def life(
    world: SimulatedWorld, path: Path, history: History, seed: str, operations: int
) -> None:
    """Serve, write, and cut the power after so many operations of the disk."""
    rng = random.Random(seed)
    share = BLOCKS // (CONNECTIONS * WORKERS)
    try:
        async with served(world, path, seed) as peers, trio.open_nursery() as nursery:
            for number in range(CONNECTIONS * WORKERS):
                blocks = range(number * share, (number + 1) * share)
                own = random.Random(rng.random())
                nursery.start_soon(work, peers[number % CONNECTIONS], history, blocks, own)
            await after(world, operations)
            world.cut_power()
            raise PowerCut
    except* PowerCut:
        pass


async def lives(folder: Path, seed: int, count: int) -> None:
    world = SimulatedWorld(seed, checkpoints=True)
    SimulatedDisk(world, 32 * MIB)
    await create_pool([member(world)], copies=1, segment_bytes=MIB)
    async with open_pool([member(world)]) as pool:
        await pool.management.create_volume("volume", BLOCKS * BLOCK)
    history, rng = History(), random.Random(seed)
    for number in range(count):
        name = f"{seed} {number}"
        await life(world, folder / f"{number}.sock", history, name, rng.randint(50, 350))
        world = world.reboot()
        async with open_pool([member(world)]) as pool:
            device = pool.open_export("volume")
            history.settle(bytes(await device.read(0, BLOCKS * BLOCK)))
            await device.close()
        world = world.reboot()


@pytest.mark.parametrize("seed", range(3))
async def test_a_flush_on_one_connection_covers_all(tmp_path: Path, seed: int) -> None:
    """40 to 42. Goal: the promises of CAN_MULTI_CONN, FLUSH and FUA hold after a power cut.

    Method: four connections write to one volume and flush now and then. Every write answered on
    any connection before a flush was sent on another is there afterwards, or a newer write.
    """
    await lives(tmp_path, seed, 4)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
async def test_a_flush_on_one_connection_covers_all_for_long(tmp_path: Path, seed: int) -> None:
    await lives(tmp_path, seed, 20)


async def test_a_flush_that_does_nothing_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: Volume) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Volume, "flush", nothing)
    with pytest.raises(AssertionError, match="block="):
        await lives(tmp_path, 1, 20)
