"""A small server that answers rightly or as a test says; written from the protocol.

It keeps writes in a cache until a flush, so that `crash` loses them. A test sets `answer` to
misbehave; requests that `answer` does not handle are answered properly.
"""

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.unit.nbd.wire import FUA, MIB

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
HAS_FLAGS, READ_ONLY, CAN_FLUSH, CAN_FUA, CAN_TRIM, CAN_ZEROES = 1, 2, 4, 8, 32, 64
CAN_MULTI, CAN_CACHE, CAN_FAST = 256, 1024, 2048
EVERYTHING = HAS_FLAGS | CAN_FLUSH | CAN_FUA | CAN_TRIM | CAN_ZEROES | CAN_CACHE
ACK, SERVER, INFO, META = 1, 2, 3, 4
ERR_UNSUP, ERR_UNKNOWN = 2**31 + 1, 2**31 + 6


@dataclass(frozen=True)
class Request:
    flags: int
    kind: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


@dataclass
class Peer:
    """One connection of a client."""

    stream: trio.SocketStream
    mode: str = "simple"
    buffer: bytearray = field(default_factory=bytearray)
    tamper: "Tamper | None" = None

    async def receive(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self.buffer += data
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def send(self, data: bytes) -> None:
        data, goes_on = (data, True) if self.tamper is None else self.tamper(data)
        await self.stream.send_all(data)
        if not goes_on:
            self.hang_up()
            raise EOFError

    async def chunk(
        self, request: Request, kind: int, payload: bytes = b"", *, flags: int = 1
    ) -> None:
        await self.send(chunk(self.mode, request, kind, payload, flags=flags))

    async def simple(self, request: Request, error: int = 0, data: bytes = b"") -> None:
        await self.send(struct.pack(">IIQ", 0x67446698, error, request.cookie) + data)

    async def done(self, request: Request, error: int = 0) -> None:
        """Answer without data, as fits the mode."""
        if self.mode == "extended" or (self.mode == "structured" and request.kind in (0, 7)):
            if error:
                await self.chunk(request, 2**15 + 1, struct.pack(">IH", error, 0))
            else:
                await self.chunk(request, 0)
        else:
            await self.simple(request, error)

    async def data(self, request: Request, data: bytes) -> None:
        if self.mode == "simple":
            await self.simple(request, 0, data)
        else:
            await self.chunk(request, 1, struct.pack(">Q", request.offset) + data)

    def hang_up(self) -> None:
        self.stream.socket.close()


def chunk(mode: str, request: Request, kind: int, payload: bytes = b"", *, flags: int = 1) -> bytes:
    if mode == "extended":
        head = struct.pack(
            ">IHHQQQ", 0x6E8A278C, flags, kind, request.cookie, request.offset, len(payload)
        )
    else:
        head = struct.pack(">IHHQI", 0x668E33EF, flags, kind, request.cookie, len(payload))
    return head + payload


def status(mode: str, number: int, runs: list[tuple[int, int]]) -> tuple[int, bytes]:
    """Return kind and payload of a block status."""
    words = [word for run in runs for word in run]
    if mode == "extended":
        return 6, struct.pack(f">II{len(words)}Q", number, len(runs), *words)
    return 5, struct.pack(f">I{len(words)}I", number, *words)


def data_chunk(mode: str, request: Request, at: int, data: bytes, *, flags: int = 0) -> bytes:
    return chunk(mode, request, 1, struct.pack(">Q", at) + data, flags=flags)


Answer = Callable[[Peer, Request], Awaitable[bool | None]]
Tamper = Callable[[bytes], tuple[bytes, bool]]
"""Given bytes to send to a client, returns the bytes to send instead, and whether to go on."""


@dataclass
class Scripted:
    """The server; `answer` and `on_option` return True for requests that they have answered."""

    path: Path
    size: int = MIB
    flags: int = EVERYTHING
    modes: tuple[str, ...] = ("structured",)
    knows_go: bool = True
    sizes: tuple[int, int, int] | None = (1, 4096, 32 * MIB)
    contexts: dict[int, str] = field(default_factory=lambda: {5: "base:allocation"})
    greeting: bytes = b"NBDMAGICIHAVEOPT\x00\x03"
    answer: Answer | None = None
    tamper: Tamper | None = None
    on_option: Callable[[Peer, int, bytes], Awaitable[bool | None]] | None = None
    peers: list[Peer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    options: list[int] = field(default_factory=list)
    aborts: int = 0
    away: bool = False

    def __post_init__(self) -> None:
        self.cache = bytearray(min(self.size, 16 * MIB))
        self.durable = bytearray(self.cache)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.path}"

    def of(self, kind: int) -> list[Request]:
        return [request for request in self.requests if request.kind == kind]

    def hang_up(self) -> None:
        """End all connections, as a broken network does."""
        for peer in self.peers:
            peer.hang_up()
        self.peers.clear()

    def crash(self) -> None:
        """Lose unflushed writes and all connections."""
        self.cache[:] = self.durable
        self.hang_up()

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        # Not trio's `bind`, which uses a thread: the mock clock would jump ahead meanwhile.
        plain = socket.socket(socket.AF_UNIX)
        plain.bind(str(self.path))
        plain.listen()
        with trio.socket.from_stdlib_socket(plain) as listener:
            await self._accept(listener, task_status)

    async def _accept(
        self, listener: trio.socket.SocketType, task_status: trio.TaskStatus[None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                sock, _ = await listener.accept()
                if self.away:
                    sock.close()
                    continue
                nursery.start_soon(self._client, Peer(trio.SocketStream(sock), tamper=self.tamper))

    async def _client(self, peer: Peer) -> None:
        self.peers.append(peer)
        try:
            await peer.send(self.greeting)
            await peer.receive(4)
            if await self._negotiate(peer):
                await self._transmit(peer)
        except (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            peer.hang_up()
            if peer in self.peers:
                self.peers.remove(peer)

    async def _negotiate(self, peer: Peer) -> bool:
        while True:
            _, number, length = struct.unpack(">QII", await peer.receive(16))
            data = await peer.receive(length)
            self.options.append(number)
            if self.on_option is not None and await self.on_option(peer, number, data):
                continue
            if number == 1:
                await peer.send(struct.pack(">QH", self.size, self.flags))
                return True
            if number == 2:
                self.aborts += 1
                await option_reply(peer, number, ACK)
                return False
            if await self._option(peer, number, data):
                return True

    async def _option(self, peer: Peer, number: int, data: bytes) -> bool:
        modes = {8: "structured", 11: "extended"}
        if number in modes and modes[number] in self.modes:
            peer.mode = modes[number]
            await option_reply(peer, number, ACK)
        elif number == 3:
            for name in (b"", b"other"):
                await option_reply(peer, number, SERVER, len(name).to_bytes(4) + name)
            await option_reply(peer, number, ACK)
        elif number in (6, 7) and self.knows_go:
            info = struct.pack(">HQH", 0, self.size, self.flags)
            await option_reply(peer, number, INFO, info)
            if self.sizes is not None:
                await option_reply(peer, number, INFO, struct.pack(">HIII", 3, *self.sizes))
            await option_reply(peer, number, ACK)
            return number == 7
        elif number in (9, 10) and self.contexts:
            for one, context in self.contexts.items():
                await option_reply(peer, number, META, one.to_bytes(4) + context.encode())
            await option_reply(peer, number, ACK)
        else:
            await option_reply(peer, number, ERR_UNSUP, b"no such option")
        return False

    async def _transmit(self, peer: Peer) -> None:
        while True:
            request = await self._request(peer)
            self.requests.append(request)
            if request.kind == DISC:
                return
            if self.answer is None or not await self.answer(peer, request):
                await self.answer_properly(peer, request)

    async def _request(self, peer: Peer) -> Request:
        if peer.mode == "extended":
            magic, flags, kind, cookie, offset, length = struct.unpack(
                ">IHHQQQ", await peer.receive(32)
            )
            assert magic == 0x21E41C71
            assert bool(flags & 32) == (kind == WRITE)
        else:
            magic, flags, kind, cookie, offset, length = struct.unpack(
                ">IHHQQI", await peer.receive(28)
            )
            assert magic == 0x25609513
        data = await peer.receive(length) if kind == WRITE else b""
        return Request(flags, kind, cookie, offset, length, data)

    async def answer_properly(self, peer: Peer, request: Request) -> None:
        start, end = request.offset, request.offset + request.length
        if request.kind == READ:
            return await peer.data(request, bytes(self.cache[start:end]))
        if request.kind == STATUS:
            for number in self.contexts:
                kind, payload = status(peer.mode, number, [(request.length, 0)])
                last = number == list(self.contexts)[-1]
                await peer.chunk(request, kind, payload, flags=int(last))
            return None
        if request.kind == WRITE:
            self.cache[start:end] = request.data
        elif request.kind in (ZEROES, TRIM):
            end = min(end, len(self.cache))
            self.cache[start:end] = bytes(max(end - start, 0))
        elif request.kind == FLUSH:
            self.durable[:] = self.cache
        if request.flags & FUA:
            self.durable[start:end] = self.cache[start:end]
        return await peer.done(request)


async def option_reply(peer: Peer, number: int, kind: int, data: bytes = b"") -> None:
    await peer.send(struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data)


@asynccontextmanager
async def scripted(server: Scripted) -> AsyncIterator[Scripted]:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()
