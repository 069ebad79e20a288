"""A server that now and then hangs up, forgets its cache, stalls, repeats itself or talks nonsense.

In every case a successful read returns written bytes, a successful flush has made the writes
durable, and a caller with unflushed writes gets an error after the server lost its cache. One seed
is one history; time is only counted.
"""

import random
import select
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from blockdev.errors import CacheLostError, DeviceError
from nbd.client import ClientOptions, NbdDevice, open_nbd
from tests.unit.nbd.client.scripted import (
    CAN_MULTI,
    EVERYTHING,
    READ,
    Peer,
    Request,
    Scripted,
    data_chunk,
    scripted,
)

STRIPES, STRIPE_BYTES = 8, 100
SIZE = STRIPES * STRIPE_BYTES
OPTIONS = ClientOptions(request_s=20, close_s=1)


def has_left(peer: Peer) -> bool:
    """Whether the client closed the connection. A server that carried out an old write after that
    would undo newer writes, which no client can prevent.
    """
    descriptor = peer.stream.socket.fileno()
    poll = select.poll()
    poll.register(max(descriptor, 0), select.POLLRDHUP)
    return descriptor < 0 or bool(poll.poll(0))


class Liar:
    """Handles each request of a server, rightly or with trouble."""

    def __init__(self, rng: random.Random, trouble: float) -> None:
        self.rng = rng
        self.trouble = trouble
        self.server: Scripted | None = None

    async def __call__(self, peer: Peer, request: Request) -> bool:
        assert self.server is not None
        rng, server = self.rng, self.server
        await trio.sleep(rng.choice((0, 0, 0.01)))
        if has_left(peer):
            return True
        if rng.random() >= self.trouble:
            await self._properly(peer, request)
            return True
        how = rng.randrange(10)
        if how == 0:
            server.crash()
        elif how == 1:
            peer.hang_up()
        elif how in (2, 3, 4):
            await self._spoiled(peer, request, how)
        elif how == 5:
            await server.answer_properly(peer, request)
            await server.answer_properly(peer, request)
        elif how == 6:
            await peer.done(request, rng.choice((5, 28, 108)))
        elif how == 7:
            await peer.send(rng.randbytes(rng.randint(1, 60)))
        elif how == 8:
            await peer.done(Request(0, request.kind, request.cookie + 1000, request.offset, 1))
        elif rng.random() < 0.3:
            await trio.sleep(rng.choice((5, 30)))
            if not has_left(peer):
                await server.answer_properly(peer, request)
        if server.peers and rng.random() < 0.1:
            rng.choice(server.peers).hang_up()
        return True

    async def _properly(self, peer: Peer, request: Request) -> None:
        assert self.server is not None
        if request.kind != READ or peer.mode == "simple" or self.rng.random() < 0.5:
            return await self.server.answer_properly(peer, request)
        await self._in_pieces(peer, request, overlap=0)

    async def _in_pieces(self, peer: Peer, request: Request, *, overlap: int) -> None:
        """Send two chunks, the second first, which overlap by `overlap` bytes, or leave a gap if
        that is negative."""
        assert self.server is not None
        start, end = request.offset, request.offset + request.length
        middle = self.rng.randint(start, end)
        for first, last in ((middle - overlap, end), (start, middle)):
            data = bytes(self.server.cache[max(first, 0) : last])
            if data:
                await peer.send(data_chunk(peer.mode, request, max(first, 0), data))
        await peer.chunk(request, 0)

    async def _spoiled(self, peer: Peer, request: Request, how: int) -> None:
        """Carry out a request, but cut its answer, flip a bit of its head, or send wrong pieces."""
        assert self.server is not None
        rng = self.rng
        if how == 2 and request.kind == READ and peer.mode != "simple":
            return await self._in_pieces(peer, request, overlap=rng.choice((-3, 3)))
        # In a header of any form, but not in the whole cookie: no client can detect an answer that
        # names another request.
        at = rng.randrange(14)

        def tamper(data: bytes) -> tuple[bytes, bool]:
            if how == 3:
                return data[:at], rng.random() < 0.3
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :], True

        peer.tamper = tamper
        try:
            await self.server.answer_properly(peer, request)
        finally:
            peer.tamper = None


class Owner:
    """Writes to its stripes, and knows the values that each byte may have."""

    def __init__(self, rng: random.Random, device: NbdDevice, server: Scripted) -> None:
        self.rng = rng
        self.device = device
        self.server = server
        self.may_be: list[set[int]] = [{0} for _ in range(SIZE)]
        self.unflushed: set[int] = set()
        self.succeeded = self.lost = 0

    async def round(self) -> None:
        """Send one request to each stripe, all at once; then perhaps a flush."""
        lost: list[Exception] = []
        async with trio.open_nursery() as nursery:
            for stripe in range(STRIPES):
                nursery.start_soon(self.guarded, lambda one=stripe: self.request(one), lost)
        if self.rng.random() < 0.3:
            await self.guarded(self.flush, lost)
        await self.recover(lost)

    async def recover(self, lost: list[Exception]) -> None:
        """Write lost data again, until no write of it is lost."""
        while lost:
            self.lost += 1
            lost.clear()
            self.device.acknowledge_cache_loss()
            while not await self.guarded(self.write_again, lost) and not lost:
                pass

    async def read_everything(self) -> None:
        """Read all from a server that is honest now; the last lie may show only here."""
        lost: list[Exception] = []
        while not await self.guarded(lambda: self.read(0, SIZE), lost):
            await self.recover(lost)
        await self.flush()

    async def guarded(self, act: Callable[[], Awaitable[None]], lost: list[Exception]) -> bool:
        """Run a request; return whether it succeeded. A lost cache is added to `lost`."""
        try:
            await act()
            self.succeeded += 1
            return True
        except CacheLostError as error:
            lost.append(error)
        except DeviceError as error:
            assert str(error)  # noqa: PT017 - it may fail, with words
        return False

    async def request(self, stripe: int) -> None:
        length = self.rng.randint(1, STRIPE_BYTES)
        offset = stripe * STRIPE_BYTES + self.rng.randint(0, STRIPE_BYTES - length)
        if self.rng.random() < 0.5:
            await self.read(offset, length)
        else:
            await self.write(offset, self.rng.randbytes(length), fua=self.rng.random() < 0.2)

    async def read(self, offset: int, length: int) -> None:
        data = bytes(memoryview(await self.device.read(offset, length)))
        assert len(data) == length
        for at, byte in enumerate(data, offset):
            assert byte in self.may_be[at], f"a wrong byte at {at}"
            if at not in self.unflushed:
                self.may_be[at] = {byte}

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        for at, byte in enumerate(data, offset):
            self.may_be[at].add(byte)
            self.unflushed.add(at)
        await self.device.write(offset, data, fua=fua)
        for at, byte in enumerate(data, offset):
            self.may_be[at] = {byte}
            if fua:
                self.unflushed.discard(at)
                assert self.server.durable[at] == byte, "FUA was a lie of the client"

    async def flush(self) -> None:
        await self.device.flush()
        for at, byte in enumerate(self.server.durable):
            assert byte in self.may_be[at], f"not durable at {at}"
        self.unflushed.clear()

    async def write_again(self) -> None:
        for stripe in range(STRIPES):
            start = stripe * STRIPE_BYTES
            mine = [at for at in range(start, start + STRIPE_BYTES) if at in self.unflushed]
            if mine:
                now = bytes(min(self.may_be[at]) for at in range(mine[0], mine[-1] + 1))
                await self.write(mine[0], now)
        await self.flush()


async def history(folder: Path, seed: int, rounds: int) -> tuple[int, int]:
    rng = random.Random(seed)
    liar = Liar(rng, trouble=rng.choice((0.01, 0.05, 0.2)))
    mode = rng.choice(("simple", "structured", "extended"))
    flags = EVERYTHING | (CAN_MULTI if rng.random() < 0.5 else 0)
    server = liar.server = Scripted(
        folder / f"{seed}.sock", size=SIZE, modes=(mode,), flags=flags, answer=liar
    )
    options = OPTIONS
    async with scripted(server):
        async with open_nbd(server.uri, options, random=random.Random(seed)) as device:
            owner = Owner(rng, device, server)
            for _ in range(rounds):
                with trio.fail_after(1000):
                    await owner.round()
            liar.trouble = 0
            with trio.fail_after(1000):
                await owner.round()
                await owner.read_everything()
            assert bytes(server.durable) == bytes(server.cache)
        with trio.fail_after(60):
            while server.peers:
                await trio.sleep(0.01)
    return owner.succeeded, owner.lost


def histories(folder: Path, seeds: range, rounds: int) -> None:
    succeeded = lost = 0
    for seed in seeds:
        try:
            one, other = trio.run(
                history, folder, seed, rounds, clock=MockClock(autojump_threshold=0)
            )
        except BaseException as error:
            error.add_note(f"{seed=}")
            raise
        succeeded, lost = succeeded + one, lost + other
    assert lost > len(seeds) // 2
    assert succeeded > 2 * rounds * len(seeds)


def test_a_server_that_lies_now_and_then(tmp_path: Path) -> None:
    histories(tmp_path, range(20), rounds=25)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 3000, 250))
def test_many_servers_that_lie(tmp_path: Path, first: int) -> None:
    histories(tmp_path, range(first, first + 250), rounds=40)
