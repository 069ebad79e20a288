"""A parser of replies with requests in flight, and the bytes that answer them."""

import struct

from nbd.client.negotiation import Mode
from nbd.client.operation import Operation
from nbd.client.replies import ReplyParser
from tests.unit.nbd.client.scripted import READ, Request
from tests.unit.nbd.client.scripted import chunk as wire_chunk
from tests.unit.nbd.client.scripted import status as wire_status

CONTEXTS = {5: "base:allocation"}
MODES = [Mode.SIMPLE, Mode.STRUCTURED, Mode.EXTENDED]
CHUNKED = [Mode.STRUCTURED, Mode.EXTENDED]
EIO = 5
NONE, DATA, HOLE = 0, 1, 2
ERROR, ERROR_OFFSET = 2**15 + 1, 2**15 + 2
OFFSET, LENGTH = 4096, 1000


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


class Wire:
    """A parser with requests in flight, and the bytes that answer them."""

    def __init__(self, mode: Mode, *operations: Operation) -> None:
        self.mode = mode
        self.pending: dict[int, Operation] = {}
        for cookie, operation in enumerate(operations, 1):
            operation.cookie = cookie
            self.pending[cookie] = operation
        self.parser = ReplyParser(mode, self.pending, CONTEXTS)

    def chunk(self, kind: int, payload: bytes = b"", *, flags: int = 1, cookie: int = 1) -> bytes:
        operation = self.pending.get(cookie)
        offset = 0 if operation is None else operation.offset
        request = Request(0, 0, cookie, offset, 0)
        return wire_chunk(self.mode.value, request, kind, payload, flags=flags)

    def data(self, at: int, data: bytes, *, flags: int = 0) -> bytes:
        return self.chunk(DATA, struct.pack(">Q", at) + data, flags=flags)

    def hole(self, at: int, length: int, *, flags: int = 0) -> bytes:
        return self.chunk(HOLE, struct.pack(">QI", at, length), flags=flags)

    def status(self, runs: list[tuple[int, int]], *, number: int = 5, flags: int = 1) -> bytes:
        kind, payload = wire_status(self.mode.value, number, runs)
        return self.chunk(kind, payload, flags=flags)

    def feed(self, stream: bytes, piece: int = 1 << 30) -> list[Operation]:
        finished = []
        while stream:
            room = self.parser.room()
            assert len(room)
            count = min(len(room), piece, len(stream))
            room[:count] = stream[:count]
            stream = stream[count:]
            self.parser.received(count)
            finished += list(self.parser.finished())
        return finished


def a_read() -> Operation:
    return Operation(READ, OFFSET, LENGTH)


def pattern(length: int) -> bytes:
    return bytes(number * 7 % 251 for number in range(length))
