"""Hostile clients over real sockets, a server for them, and a measure of what they leave behind."""

import gc
import os
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from typing_extensions import Buffer

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from nbd.errors import UnknownExportError
from nbd.server.access import Access, Peer
from nbd.server.handshake import Tls
from nbd.server.limits import Limits
from nbd.server.listeners import TlsTerms, listen_tcp, listen_unix
from nbd.server.server import Server
from storage.pool import MemberDevice, Pool, create_pool, open_pool
from tests.fuzz.nbd_reading import NAMES, SECRET, End, Haggle, read_requests
from tests.fuzz.nbd_streams import SIZE_BYTES, conversation, pieces, spoil
from tests.unit.nbd.certificates import HOST, Certificates

LIMITS = Limits(
    connections_max=128, handshake_s=10.0, memory_bytes_max=2 << 20, patience_s=1.0, grace_s=1.0,
    requests_in_flight_max=16,
)  # fmt: skip
"""Tight limits, so that clients reach them."""
HANGS_AFTER_S = 600
"""Far more than a loaded machine takes for milliseconds of work."""
LINGERING_MAX = 40
GREETING = b"NBDMAGICIHAVEOPT\0\3"
ERRORS = {0, 1, 5, 12, 22, 28, 75, 95, 108}
KEPT = "kept"


class Shared(MemoryDevice):
    """Memory that outlives the connections that close it."""

    async def close(self) -> None:
        pass


class Slow(Shared):
    """Memory whose requests become tasks of the server and end in any order."""

    def __init__(self, size_bytes: int, rng: random.Random) -> None:
        super().__init__(size_bytes)
        self.waiting = 0
        self._rng = rng

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await trio.sleep(self._rng.choice((0, 0, 0.0005, 0.003)))
        finally:
            self.waiting -= 1

    def try_read(self, offset: int, length: int) -> bytes:
        return None  # type: ignore[return-value]

    def try_write(self, offset: int, data: Buffer) -> bool:
        return False

    async def read(self, offset: int, length: int) -> bytes:
        await self._wait()
        return super().try_read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._wait()
        super().try_write(offset, data)

    async def flush(self) -> None:
        await self._wait()


class Exports:
    """A memory device, a slow device and a volume, under the names that hostile clients know."""

    def __init__(self, pool: Pool, slow: Slow) -> None:
        memory, slow_name, self._volume = (name.decode() for name in NAMES)
        self._devices = {memory: Shared(SIZE_BYTES), slow_name: slow, KEPT: Shared(SIZE_BYTES)}
        self._pool = pool

    def names(self) -> list[str]:
        return [name.decode() for name in NAMES]

    async def open(self, name: str) -> BlockDevice:
        if name == self._volume:
            return self._pool.open_export("volume")
        if name not in self._devices:
            raise UnknownExportError(f"no such export: name={name!r}")
        return self._devices[name]


@dataclass
class House:
    """A server on sockets of every kind."""

    server: Server
    slow: Slow
    folder: Path
    port: int
    client_context: ssl.SSLContext
    rng: random.Random
    lingering: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self, kind: str) -> trio.SocketStream:
        if kind == "tcp":
            return await trio.open_tcp_stream("127.0.0.1", self.port)
        return await trio.open_unix_socket(self.folder / f"{kind}.sock")

    async def idle(self) -> None:
        """Close lingering clients, and wait until no connection and no request is left."""
        for stream in self.lingering:
            await stream.aclose()
        self.lingering.clear()
        with trio.fail_after(HANGS_AFTER_S):
            while self.server.clients() or self.slow.waiting:
                await trio.sleep(0.002)
        memory = self.server._service.memory
        assert (memory.used_bytes, memory._holders, memory._watch) == (0, {}, None)


@asynccontextmanager
async def house(folder: Path, made: Certificates, rng: random.Random) -> AsyncIterator[House]:
    member = MemberDevice(MemoryDevice(64 << 20), "member", "host")
    await create_pool([member], copies=1, segment_bytes=1 << 20)
    async with open_pool([member]) as pool:
        await pool.management.create_volume("volume", SIZE_BYTES)
        slow = Slow(SIZE_BYTES, random.Random(rng.random()))

        def access(name: str, _: Peer) -> Access:
            return Access.NONE if name == SECRET.decode() else Access.WRITE

        server = Server(Exports(pool, slow), LIMITS, access=access)
        context = made.server(mutual=False)
        listeners = [
            listen_unix(folder / "off.sock"),
            listen_unix(folder / "allow.sock", TlsTerms(Tls.ALLOW, context)),
            listen_unix(folder / "require.sock", TlsTerms(Tls.REQUIRE, context)),
            *listen_tcp("127.0.0.1", 0),
        ]
        port = listeners[-1].sock.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            yield House(server, slow, folder, port, made.client(), rng)
            nursery.cancel_scope.cancel()


# -- one hostile client


def is_wrong(stream: bytes, policy: Tls) -> bool:
    """Whether a stream breaks a rule, or ends within a message, by the reading of `nbd_reading`."""
    model = Haggle(policy)
    tls = model.receive(stream)
    if tls or model.end is not End.ENTERED:
        return model.wrong or tls or bool(model.rest) or not stream
    found = read_requests(model.rest, extended=model.extended, payload_max=32 << 20)
    refused = any(
        not 0 <= one.kind <= 7 or one.offset + one.length > SIZE_BYTES for one in found.whole
    )
    return model.wrong or found.closed or found.cut or refused


async def attack(here: House, rng: random.Random) -> bool:
    """Send one hostile stream; return whether it was malformed."""
    kind = rng.choice(("off", "off", "off", "tcp", "tcp", "allow", "require"))
    stream = spoil(rng, conversation(rng)) if rng.random() < 0.9 else rng.randbytes(100)
    arrives = pieces(rng, stream)
    transport = await here.connect(kind)
    wrong = is_wrong(stream, Tls(kind) if kind in ("allow", "require") else Tls.OFF)
    try:
        inner: trio.abc.Stream = transport
        if kind in ("allow", "require") and rng.random() < 0.3:
            inner = await begin_tls(here, transport)
            wrong = is_wrong(b"\0\0\0\3" + stream[4:], Tls.OFF)
            arrives = [stream[4:]]
        await _MANNERS[rng.choice(list(_MANNERS))](here, rng, transport, inner, arrives)
    except trio.BrokenResourceError:
        pass  # because the server rightly closed in the middle
    finally:
        if transport not in here.lingering:
            transport.socket.close()
    return wrong


async def begin_tls(here: House, transport: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
    """Negotiate properly until TLS is set up."""
    await transport.send_all(b"\0\0\0\3IHAVEOPT" + struct.pack(">II", 5, 0))
    taken = b""
    while len(taken) < 18 + 20:
        data = await transport.receive_some(38 - len(taken))
        assert data
        taken += data
    secure = trio.SSLStream(transport, here.client_context, server_hostname=HOST)
    await secure.do_handshake()
    return secure


async def _send(stream: trio.abc.Stream, rng: random.Random, arrives: list[bytes]) -> None:
    pause_s = rng.choice((None, None, 0, 0.0002))
    for piece in arrives:
        await stream.send_all(piece)
        if pause_s is not None and len(arrives) < 300:
            await trio.sleep(pause_s)


async def _listen_to_the_end(
    here: House, rng: random.Random, transport: trio.SocketStream, inner: trio.abc.Stream,
    arrives: list[bytes],
) -> None:  # fmt: skip
    """Send all, half-close, and take every answer; the server ends the connection by itself."""
    said = bytearray()

    async def speak() -> None:
        with suppress(trio.BrokenResourceError):
            await _send(inner, rng, arrives)
            await transport.send_eof()

    with trio.fail_after(HANGS_AFTER_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            with suppress(trio.BrokenResourceError):
                while data := await inner.receive_some(1 << 16):
                    said += data
            nursery.cancel_scope.cancel()
    check_said(bytes(said), greeted=inner is transport)


async def _leave(
    here: House, rng: random.Random, transport: trio.SocketStream, inner: trio.abc.Stream,
    arrives: list[bytes],
) -> None:  # fmt: skip
    """Send all, and leave without reading the answers."""
    with trio.move_on_after(0.05):
        await _send(inner, rng, arrives)
    if rng.random() < 0.5:
        await trio.sleep(rng.choice((0, 0.001)))


async def _reset(
    here: House, rng: random.Random, transport: trio.SocketStream, inner: trio.abc.Stream,
    arrives: list[bytes],
) -> None:  # fmt: skip
    """Send a part and vanish, over TCP with a reset."""
    if transport.socket.family != socket.AF_UNIX:
        transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    arrives = arrives[: rng.randint(0, len(arrives))]
    with trio.move_on_after(0.05):
        await _send(inner, rng, arrives)


async def _linger(
    here: House, rng: random.Random, transport: trio.SocketStream, inner: trio.abc.Stream,
    arrives: list[bytes],
) -> None:  # fmt: skip
    """Send all, and stay connected without reading, until too many clients stay."""
    with trio.move_on_after(0.05):
        await _send(inner, rng, arrives)
    here.lingering.append(transport)
    if len(here.lingering) > LINGERING_MAX:
        here.lingering.pop(rng.randrange(len(here.lingering))).socket.close()


_MANNERS = {
    "listens": _listen_to_the_end, "listens too": _listen_to_the_end, "leaves": _leave,
    "resets": _reset, "lingers": _linger,
}  # fmt: skip


# -- the answers of the server


def check_said(said: bytes, *, greeted: bool) -> None:
    """Check that answers are well-formed, as far as that shows without the requests."""
    at = 0
    if greeted:
        assert said[:18] == GREETING[: len(said)]
        at = 18
    while len(said) - at >= 20:
        magic = said[at : at + 4]
        if magic == b"\0\3\xe8\x89":
            _, _, kind, length = struct.unpack_from(">QIII", said, at)
            assert kind in (1, 2, 3, 4) or 1 <= kind - (1 << 31) <= 10
            assert length <= 4096 + 8
            assert not (kind == 1 and length)
            at += 20 + length
        elif magic == b"\x67\x44\x66\x98":
            (error,) = struct.unpack_from(">I", said, at + 4)
            assert error in ERRORS
            if not error:
                return  # because data may follow, or not
            at += 16
        elif magic in (b"\x66\x8e\x33\xef", b"\x6e\x8a\x27\x8c"):
            compact = magic[0] == 0x66
            form, head = (">IHHQI", 20) if compact else (">IHHQQQ", 32)
            if len(said) - at < head:
                return
            _, flags, kind, *_, length = struct.unpack_from(form, said, at)
            check_chunk(flags, kind, said[at + head : at + head + length], length)
            at += head + length
        else:
            assert said[at : at + 8] == SIZE_BYTES.to_bytes(8), said[at : at + 40].hex()
            at += 134 if said[at + 10 : at + 134] == bytes(124) else 10


def check_chunk(flags: int, kind: int, payload: bytes, length: int) -> None:
    assert flags in (0, 1)
    assert kind in (0, 1, 2, 5, 6, 0x8001)
    assert length <= SIZE_BYTES + 8
    assert kind != 0 or (flags and not length)
    assert kind != 1 or length > 8
    assert kind != 2 or length == 12
    if kind == 0x8001 and len(payload) == length:
        error, size = struct.unpack_from(">IH", payload)
        assert error in ERRORS - {0}
        assert length == 6 + size
        payload[6:].decode()


# -- leaks


@dataclass(frozen=True)
class Footprint:
    """The resources that this process holds."""

    tasks: int
    descriptors: int
    objects: int
    resident_kib: int

    @staticmethod
    async def measure() -> "Footprint":
        for _ in range(3):
            await trio.sleep(0.01)
            gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Footprint(
            trio.lowlevel.current_statistics().tasks_living,
            len(os.listdir("/proc/self/fd")),
            len(gc.get_objects()),
            pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        )
