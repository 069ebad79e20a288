"""A small raw client and helpers that build bytes, independent of the code in `nbd`."""

import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from nbd.errors import UnknownExportError
from nbd.server.access import AccessRule, decide
from nbd.server.limits import Limits
from nbd.server.listeners import TlsTerms, listen_unix
from nbd.server.server import Server
from tests.unit.hang import HANG_S

PLAIN = TlsTerms()
MIB = 1 << 20
GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
ACK, SERVER, INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID = 2**31 + 1, 2**31 + 2, 2**31 + 3
ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN = 2**31 + 5, 2**31 + 6, 2**31 + 7
ERR_TOO_BIG, ERR_EXT_HEADER_REQD = 2**31 + 9, 2**31 + 10


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def info_data(name: bytes, *kinds: int) -> bytes:
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)


def request(
    kind: int, offset: int = 0, length: int = 0, *, cookie: int = 7, flags: int = 0
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)


def extended_request(
    kind: int, offset: int = 0, length: int = 0, *, cookie: int = 7, flags: int = 0
) -> bytes:
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, cookie, offset, length)


def write(offset: int, data: bytes, *, cookie: int = 7, flags: int = 0) -> bytes:
    return request(WRITE, offset, len(data), cookie=cookie, flags=flags) + data


def option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Split a server's option replies into (option, type, payload)."""
    replies = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        replies.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies


@dataclass
class Exports:
    """Named devices; counts the handles that were opened and closed."""

    devices: dict[str, Callable[[], BlockDevice]] = field(
        default_factory=lambda: {"": lambda: MemoryDevice(MIB)}
    )
    opened: list[BlockDevice] = field(default_factory=list)
    closed: list[BlockDevice] = field(default_factory=list)

    def names(self) -> Sequence[str]:
        return list(self.devices)

    async def open(self, name: str) -> BlockDevice:
        await trio.lowlevel.checkpoint()
        if name not in self.devices:
            raise UnknownExportError(f"no such export: name={name!r}")
        device = self.devices[name]()
        close = device.close

        async def counted_close() -> None:
            await trio.lowlevel.checkpoint()
            self.closed.append(device)
            await close()

        device.close = counted_close  # type: ignore[method-assign]
        self.opened.append(device)
        return device


class RawClient:
    """A client that sends and receives the bytes of the protocol."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self.buffer = bytearray()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError(f"connection ended: have={bytes(self.buffer)!r} want={count}")
            self.buffer += data
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def ended(self) -> bool:
        try:
            return not self.buffer and not await self.stream.receive_some(1)
        except trio.BrokenResourceError:
            return True

    async def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; return its replies up to the final one."""
        await self.send(option(number, data))
        replies = []
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", await self.receive(20))
            assert (magic, echoed) == (0x3E889045565A9, number)
            replies.append((kind, await self.receive(length)))
            if kind == ACK or kind >> 31:
                return replies

    async def greet(self, flags: int = 3) -> None:
        assert await self.receive(18) == GREETING
        await self.send(struct.pack(">I", flags))

    async def enter(self, name: bytes = b"", *, structured: bool = False) -> dict[int, bytes]:
        """Negotiate and enter an export by GO; return its information by kind."""
        await self.greet()
        if structured:
            assert await self.option(8) == [(ACK, b"")]
        replies = await self.option(7, info_data(name))
        assert replies.pop() == (ACK, b"")
        return {int.from_bytes(data[:2]): data[2:] for _, data in replies}

    async def simple(self, length: int = 0) -> tuple[int, int, bytes]:
        """Receive a simple reply; return cookie, error, data."""
        magic, error, cookie = struct.unpack(">IIQ", await self.receive(16))
        assert magic == 0x67446698
        return cookie, error, b"" if error else await self.receive(length)

    async def chunk(self) -> tuple[int, int, int, bytes]:
        """Receive a structured chunk; return cookie, flags, type, payload."""
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", await self.receive(20))
        assert magic == 0x668E33EF
        return cookie, flags, kind, await self.receive(length)

    async def extended_chunk(self) -> tuple[int, int, int, int, bytes]:
        """Receive an extended chunk; return cookie, flags, type, offset, payload."""
        magic, flags, kind, cookie, offset, length = struct.unpack(
            ">IHHQQQ", await self.receive(32)
        )
        assert magic == 0x6E8A278C
        return cookie, flags, kind, offset, await self.receive(length)

    async def ask(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        """Send a request whose answer has no data; return the error."""
        await self.send(request(kind, offset, length, flags=flags) + data)
        cookie, error, _ = await self.simple()
        assert cookie == 7
        return error

    async def read(self, offset: int, length: int, *, flags: int = 0) -> bytes | int:
        """Send a READ; return its data, or the error."""
        await self.send(request(READ, offset, length, flags=flags))
        _, error, data = await self.simple(length)
        return error or data


@dataclass
class Running:
    """A server under test."""

    server: Server
    exports: Exports
    path: Path
    done: trio.Event

    streams: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self) -> RawClient:
        self.streams.append(await _connect(self.path))
        return RawClient(self.streams[-1])

    async def entered(self, name: bytes = b"", *, structured: bool = False) -> RawClient:
        client = await self.connect()
        await client.enter(name, structured=structured)
        return client

    async def idle(self) -> None:
        """Wait until every client is gone; assert that every device handle is closed."""
        with trio.fail_after(HANG_S):
            while self.server.clients():
                await trio.sleep(0.002)
        assert len(self.exports.closed) == len(self.exports.opened)
        assert set(self.exports.closed) == set(self.exports.opened)


async def _connect(path: Path) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return trio.SocketStream(sock)


@asynccontextmanager
async def running(
    folder: Path,
    exports: Exports | None = None,
    limits: Limits | None = None,
    *,
    tls: TlsTerms = PLAIN,
    rules: Sequence[AccessRule] = (),
) -> AsyncIterator[Running]:
    """Run a server on a Unix socket; the body must end within HANG_S."""
    exports = exports or Exports()
    server = Server(
        exports,
        limits,
        describe=lambda name: f"about {name}" if name else "",
        access=lambda name, peer: decide(rules, name, peer),
    )
    path = folder / "nbd.sock"
    done = trio.Event()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        await server.serve([listen_unix(path, tls)], task_status=task_status)
        done.set()

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            run = Running(server, exports, path, done)
            try:
                yield run
            finally:
                for stream in run.streams:
                    stream.socket.close()
            nursery.cancel_scope.cancel()
    assert len(exports.opened) == len(exports.closed)
