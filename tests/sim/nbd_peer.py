"""A client with many requests in flight that checks every reply against the protocol.

Written from the protocol, not from `nbd`: an answer that breaks a rule fails an assertion.
"""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import trio

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
ERRORS = {1, 5, 12, 22, 28, 75, 95, 108}

Connect = Callable[[], Awaitable[trio.SocketStream]]


class Mode(Enum):
    """The form of replies."""

    SIMPLE = "simple"
    STRUCTURED = "structured"
    EXTENDED = "extended"


@dataclass
class Answer:
    """The answer to a request, maybe not whole yet; `pieces` are the parts of `data` that came."""

    kind: int
    offset: int
    length: int
    flags: int
    error: int = 0
    data: bytearray = field(default_factory=bytearray)
    pieces: list[tuple[int, int]] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    done: trio.Event = field(default_factory=trio.Event)


class NbdPeer:
    """One connection in the transmission phase; made by `nbd_peer`."""

    def __init__(self, stream: trio.SocketStream, mode: Mode) -> None:
        self._stream = stream
        self._mode = mode
        self._buffer = bytearray()
        self._waiting: dict[int, Answer] = {}
        self._cookie = 0
        self._sending = trio.Lock()
        self._receiving = trio.CancelScope()

    async def call(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Answer:
        """Send a request, wait for the whole answer, and check it.

        `data` is the payload of a WRITE; with STATUS it is a filter, which repeats the length.
        """
        self._cookie += 1
        cookie = self._cookie
        answer = Answer(kind, offset, length, flags)
        if kind == READ:
            answer.data = bytearray(length)
        self._waiting[cookie] = answer
        if self._mode is Mode.EXTENDED:
            if kind == WRITE:
                flags |= PAYLOAD_LEN
            if kind == STATUS and data:
                flags, length = flags | PAYLOAD_LEN, len(data)
            head = struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, cookie, offset, length)
        else:
            head = struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)
        async with self._sending:
            await self._stream.send_all(head + data)
        await answer.done.wait()
        return answer

    async def negotiate(self, name: bytes) -> None:
        assert await self._take(18) == b"NBDMAGICIHAVEOPT\0\3"
        await self._stream.send_all(b"\0\0\0\3")
        if self._mode is not Mode.SIMPLE:
            await self._option(11 if self._mode is Mode.EXTENDED else 8)
            base = b"base:allocation"
            await self._option(
                10, struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(base)) + base
            )
        await self._option(7, struct.pack(">I", len(name)) + name + b"\0\0")

    async def leave(self, *, goodbye: bool) -> None:
        """Disconnect, after a DISC request with `goodbye`; no request may be in flight."""
        assert not self._waiting
        self._receiving.cancel()
        if goodbye:
            magic, form = 0x25609513, ">IHHQQI"
            if self._mode is Mode.EXTENDED:
                magic, form = 0x21E41C71, ">IHHQQQ"
            await self._stream.send_all(struct.pack(form, magic, 0, DISC, 0, 0, 0))
        await self._stream.aclose()

    async def receive(self) -> None:
        """Take replies until the client leaves."""
        with self._receiving:
            await self._receive()

    async def _receive(self) -> None:
        while True:
            magic = await self._take(4)
            if magic == b"\x67\x44\x66\x98":
                assert self._mode is not Mode.EXTENDED
                error, cookie = struct.unpack(">IQ", await self._take(12))
                answer = self._waiting[cookie]
                if self._mode is not Mode.SIMPLE:
                    assert answer.kind not in (READ, STATUS), "answered in chunks"
                elif answer.kind == READ and not error:
                    self._piece(answer, answer.offset, await self._take(answer.length))
                self._finish(cookie, error)
            elif magic == b"\x66\x8e\x33\xef":
                assert self._mode is Mode.STRUCTURED
                flags, kind, cookie, length = struct.unpack(">HHQI", await self._take(16))
                self._chunk(cookie, flags, kind, await self._take(length))
            else:
                assert magic == b"\x6e\x8a\x27\x8c"
                assert self._mode is Mode.EXTENDED
                flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", await self._take(28))
                assert offset == self._waiting[cookie].offset
                self._chunk(cookie, flags, kind, await self._take(length))

    def _chunk(self, cookie: int, flags: int, kind: int, payload: bytes) -> None:
        answer = self._waiting[cookie]
        assert flags in (0, 1)
        error = 0
        if kind == 0:
            assert not payload
            assert flags
        elif kind == 1:
            assert answer.kind == READ
            assert len(payload) > 8
            self._piece(answer, int.from_bytes(payload[:8]), payload[8:])
        elif kind == 2:
            assert answer.kind == READ
            at, length = struct.unpack(">QI", payload)
            assert length
            self._piece(answer, at, bytes(length))
        elif kind in (5, 6):
            self._extents(answer, kind, payload)
        else:
            assert kind in (0x8001, 0x8002)
            error, size = struct.unpack_from(">IH", payload)
            assert error
            payload[6 : 6 + size].decode()
            assert len(payload) == 6 + size + 8 * (kind == 0x8002)
        answer.error = answer.error or error
        if flags:
            self._finish(cookie, answer.error)

    def _extents(self, answer: Answer, kind: int, payload: bytes) -> None:
        assert answer.kind == STATUS
        assert not answer.extents, "one chunk for one context"
        if kind == 5:
            assert self._mode is Mode.STRUCTURED
            words = struct.unpack(f">{len(payload) // 4}I", payload)[1:]
        else:
            _, count = struct.unpack_from(">II", payload)
            words = struct.unpack_from(f">{2 * count}Q", payload, 8)
            assert len(payload) == 8 + 16 * count
        answer.extents = list(zip(words[::2], words[1::2], strict=True))
        lengths = [length for length, _ in answer.extents]
        assert lengths
        assert all(lengths)
        assert sum(lengths) <= answer.length
        assert len(lengths) == 1 or not answer.flags & REQ_ONE
        assert all(state in (0, 1, 2, 3) for _, state in answer.extents)

    @staticmethod
    def _piece(answer: Answer, at: int, data: bytes) -> None:
        start, end = at - answer.offset, at - answer.offset + len(data)
        assert 0 <= start <= end <= answer.length, "in bounds"
        assert all(end <= first or last <= start for first, last in answer.pieces), "overlap"
        assert not (answer.flags & DF and answer.pieces), "DF: one piece"
        answer.pieces.append((start, end))
        answer.data[start:end] = data

    def _finish(self, cookie: int, error: int) -> None:
        answer = self._waiting.pop(cookie)
        assert error == 0 or error in ERRORS
        assert error != 95 or answer.flags & FAST_ZERO
        answer.error = error
        if not error and answer.kind == READ:
            covered = sum(last - first for first, last in answer.pieces)
            assert covered == answer.length
        if not error and answer.kind == STATUS:
            assert answer.extents
        answer.done.set()

    async def _option(self, number: int, data: bytes = b"") -> None:
        await self._stream.send_all(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        kind = 0
        while kind != 1:
            magic, echoed, kind, length = struct.unpack(">QIII", await self._take(20))
            assert (magic, echoed) == (0x3E889045565A9, number)
            assert not kind >> 31
            await self._take(length)

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self._stream.receive_some(262144)
            assert data, "the server hung up"
            self._buffer += data
        taken = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return taken


@asynccontextmanager
async def nbd_peer(
    stream: trio.SocketStream, mode: Mode, name: bytes = b""
) -> AsyncIterator[NbdPeer]:
    """Negotiate, and receive replies in the background until the block ends."""
    peer = NbdPeer(stream, mode)
    async with stream:
        await peer.negotiate(name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.receive)
            yield peer
            nursery.cancel_scope.cancel()
