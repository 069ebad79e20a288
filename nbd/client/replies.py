"""NBD transmission phase, client side: bytes in, finished requests out. No I/O.

Source: NBD proto.md, "Transmission phase" and "Structured reply types", and its
extension "extended headers"; the tables of headers are in `nbd.server.replies`. Big-endian;
sizes in bytes; payloads of chunks:

    OFFSET_DATA          OFFSET_HOLE          ERROR                    ERROR_OFFSET
    offset  size  field  offset  size  field  offset  size  field      ...as ERROR, and at
         0     8  offset      0     8  offset      0     4  error      the end 8 bytes: offset
         8     n  data        8     4  length      4     2  text bytes
                                                   6     n  text

    BLOCK_STATUS
    offset  size  field
         0     4  number of the context
         4     8  u32 length, u32 state; and so on

    BLOCK_STATUS_EXT
    offset  size  field
         0     4  number of the context
         4     4  number of extents
         8    16  u64 length, u64 state; and so on

The parser checks every claim of a reply: its cookie, its lengths, and that it is complete.
A wrong reply raises ProtocolError, and the connection cannot be used any more.
"""

import struct
from collections.abc import Iterator, Mapping, MutableMapping

from blockdev.device import EXTENTS_MAX
from nbd.client.negotiation import Mode
from nbd.client.operation import Operation
from nbd.constants import (
    CHUNK_DONE,
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRING_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
)
from nbd.errors import ProtocolError

RECEIVE_BYTES = 64 << 10
"""Size of the buffer for all but large data, which goes straight to its place. A larger one would
mean fewer calls for small replies, but more bytes of large ones that have to be copied."""
STATUS_EXTENTS_MAX = 1 << 20
"""Most extents of one reply, by the protocol."""

_NO_CONTEXTS: Mapping[int, str] = {}
_SIMPLE = struct.Struct(">IIQ")
_STRUCTURED = struct.Struct(">IHHQI")
_EXTENDED = struct.Struct(">IHHQQQ")
_OFFSET = struct.Struct(">Q")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_RUN = struct.Struct(">II")
_RUN_EXT = struct.Struct(">QQ")
_READ = int(Command.READ)
_STATUS = int(Command.BLOCK_STATUS)
_DATA = int(Chunk.OFFSET_DATA)
_IS_ERROR = 1 << 15
_ERROR_BYTES_MAX = _ERROR.size + STRING_BYTES_MAX + 256  # newer errors may have more fields
assert _SIMPLE.size == 16
assert _STRUCTURED.size == 20
assert _EXTENDED.size == 32

_LONGEST: Mapping[int, int] = {
    Chunk.NONE: 0,
    Chunk.OFFSET_HOLE: _HOLE.size,
    Chunk.BLOCK_STATUS: 4 + _RUN.size * STATUS_EXTENTS_MAX,
    Chunk.BLOCK_STATUS_EXT: 8 + _RUN_EXT.size * STATUS_EXTENTS_MAX,
}


class ReplyParser:
    """Receive into `room`, say how much with `received`, drain `finished`.

    Args:
        mode: the form of replies.
        pending: requests in flight, by cookie; the parser removes finished ones.
        contexts: the contexts that the reply to a BLOCK_STATUS must cover, by number.
    """

    def __init__(
        self,
        mode: Mode,
        pending: MutableMapping[int, Operation],
        contexts: Mapping[int, str] = _NO_CONTEXTS,
    ) -> None:
        self._mode = mode
        self._pending = pending
        self._contexts = contexts
        self._names = frozenset(contexts.values())
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._start = 0
        self._end = 0
        self._sink = memoryview(b"")  # the unfilled rest of the buffer of large data
        self._sink_of: tuple[Operation, bool] | None = None  # its request; whether the last chunk
        self._long: bytearray | None = None  # a payload that does not fit the buffer

    def room(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._sink_of is not None:
            return self._sink
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """Note that `count` bytes arrived in `room`."""
        if self._sink_of is not None:
            self._sink = self._sink[count:]
        else:
            self._end += count

    def is_between_replies(self) -> bool:
        """Whether no part of an incomplete reply has arrived."""
        return self._sink_of is None and self._long is None and self._start == self._end

    def finished(self) -> Iterator[Operation]:
        """Yield requests that are answered, until more must be received.

        Raises:
            ProtocolError: a reply breaks the protocol.
        """
        while True:
            if self._sink_of is not None:
                if self._sink:
                    return
                chunk: tuple[Operation, bool] | None = self._sink_of
                self._sink_of = None
            else:
                chunk = self._take_chunk()
            if chunk is None:
                return
            operation, last = chunk
            if last:
                self._check_complete(operation)
                del self._pending[operation.cookie]
                yield operation

    def _take_chunk(self) -> tuple[Operation, bool] | None:
        """Take the next whole chunk; None when more must be received, or data goes to `_sink`."""
        available = self._end - self._start
        if available < _SIMPLE.size:  # no header is shorter
            return None
        (magic,) = struct.unpack_from(">I", self._buffer, self._start)
        if self._mode is Mode.EXTENDED:
            if magic != EXTENDED_REPLY_MAGIC:
                raise ProtocolError(f"bad reply magic: magic={magic:#x}")
            if available < _EXTENDED.size:
                return None
            _, flags, kind, cookie, offset, length = _EXTENDED.unpack_from(
                self._buffer, self._start
            )
            operation = self._find(cookie)
            if offset != operation.offset:
                raise ProtocolError(
                    f"reply to another offset: asked={operation.offset} got={offset}"
                )
            return self._chunk(operation, flags, kind, length, _EXTENDED.size)
        if magic == SIMPLE_REPLY_MAGIC:
            return self._simple()
        if magic != STRUCTURED_REPLY_MAGIC or self._mode is not Mode.STRUCTURED:
            raise ProtocolError(f"bad reply magic: magic={magic:#x}")
        if available < _STRUCTURED.size:
            return None
        _, flags, kind, cookie, length = _STRUCTURED.unpack_from(self._buffer, self._start)
        return self._chunk(self._find(cookie), flags, kind, length, _STRUCTURED.size)

    def _simple(self) -> tuple[Operation, bool] | None:
        _, error, cookie = _SIMPLE.unpack_from(self._buffer, self._start)
        operation = self._find(cookie)
        if operation.kind == _READ and self._mode is not Mode.SIMPLE:
            raise ProtocolError("simple reply to a READ, where structured ones were agreed")
        self._start += _SIMPLE.size
        if error:
            operation.fail(error)
        elif operation.kind == _READ:
            return self._data(operation, operation.offset, operation.length, last=True)
        return operation, True

    def _chunk(
        self, operation: Operation, flags: int, kind: int, length: int, header_bytes: int
    ) -> tuple[Operation, bool] | None:
        if flags & ~CHUNK_DONE:
            raise ProtocolError(f"unknown flags of a reply: flags={flags:#x}")
        last = bool(flags)
        if kind == _DATA:
            if operation.kind != _READ:
                raise ProtocolError(f"data in reply to another command: command={operation.kind}")
            if length <= _OFFSET.size:
                raise ProtocolError(f"chunk without data: bytes={length}")
            first = self._start + header_bytes
            if self._end - first < _OFFSET.size:
                return None
            (at,) = _OFFSET.unpack_from(self._buffer, first)
            self._start = first + _OFFSET.size
            return self._data(operation, at, length - _OFFSET.size, last=last)
        longest = _LONGEST.get(kind, _ERROR_BYTES_MAX if kind & _IS_ERROR else -1)
        if length > longest:
            raise ProtocolError(f"unknown or too long chunk: type={kind} bytes={length}")
        payload = self._payload(header_bytes, length)
        if payload is None:
            return None
        self._content(operation, kind, payload, last)
        return operation, last

    def _payload(self, header_bytes: int, length: int) -> bytes | bytearray | None:
        """Return the payload behind the header and go past it; None until it is whole."""
        first = self._start + header_bytes
        if self._long is None:
            if header_bytes + length <= RECEIVE_BYTES:
                if self._end - first < length:
                    return None
                self._start = first + length
                return bytes(self._buffer[first : self._start])
            self._long = bytearray()
        # `_long` grows as bytes arrive, not by the header's claim. The header stays in the buffer.
        more = self._buffer[first : min(self._end, first + length - len(self._long))]
        self._long += more
        left = self._end - first - len(more)
        self._buffer[first : first + left] = self._buffer[first + len(more) : self._end]
        self._end = first + left
        if len(self._long) < length:
            return None
        payload, self._long = self._long, None
        self._start = first
        return payload

    def _data(
        self, operation: Operation, at: int, length: int, *, last: bool
    ) -> tuple[Operation, bool] | None:
        """Copy the data that begins at `_start` to its place; the rest goes there directly."""
        operation.take(at, length)
        arrived = min(length, self._end - self._start)
        first, self._start = self._start, self._start + arrived
        if arrived == operation.length and operation.into is None:  # usual, and quickest
            operation.data = bytes(self._buffer[first : self._start])
            return operation, last
        room = operation.room(at, length)
        room[:arrived] = self._buffer[first : self._start]
        if arrived == length:
            return operation, last
        self._sink = room[arrived:]
        self._sink_of = operation, last
        return None

    def _content(
        self, operation: Operation, kind: int, payload: bytes | bytearray, last: bool
    ) -> None:
        """Take a chunk that is not data."""
        if kind & _IS_ERROR:
            _take_error(operation, kind, payload)
        elif kind == Chunk.NONE:
            if not last:
                raise ProtocolError("empty chunk that is not the last")
        elif kind == Chunk.OFFSET_HOLE and operation.kind == _READ:
            if len(payload) != _HOLE.size:
                raise ProtocolError(f"bad hole: bytes={len(payload)}")
            at, length = _HOLE.unpack(payload)
            if not length:
                raise ProtocolError("empty hole")
            operation.take(at, length)
            room = operation.room(at, length)
            room[:] = bytes(length)
        elif kind == self._status_kind() and operation.kind == _STATUS:
            self._take_status(operation, payload)
        else:
            raise ProtocolError(f"chunk does not fit: type={kind} command={operation.kind}")

    def _status_kind(self) -> Chunk:
        return Chunk.BLOCK_STATUS_EXT if self._mode is Mode.EXTENDED else Chunk.BLOCK_STATUS

    def _take_status(self, operation: Operation, payload: bytes | bytearray) -> None:
        extended = self._mode is Mode.EXTENDED
        head, form = (8, _RUN_EXT) if extended else (4, _RUN)
        count, rest = divmod(len(payload) - head, form.size)
        if rest or count < 1 or (extended and int.from_bytes(payload[4:8]) != count):
            raise ProtocolError(f"bad block status: bytes={len(payload)}")
        number = int.from_bytes(payload[:4])
        context = self._contexts.get(number)
        if context is None or context in operation.runs:
            raise ProtocolError(f"unknown or repeated context of a block status: number={number}")
        runs: list[tuple[int, int]] = []
        total = 0
        for length, state in form.iter_unpack(memoryview(payload)[head:]):
            if not length:
                raise ProtocolError("empty extent in a block status")
            if total >= operation.length:
                raise ProtocolError("block status goes on behind its request")
            total += length
            if len(runs) < EXTENTS_MAX:  # callers take no more at once
                runs.append((length, state))
        operation.runs[context] = runs

    def _check_complete(self, operation: Operation) -> None:
        if operation.error:
            return
        if operation.kind == _READ and not operation.is_whole():
            raise ProtocolError(
                f"a read is answered in part: offset={operation.offset} bytes={operation.length}"
            )
        if operation.kind == _STATUS and operation.runs.keys() != self._names:
            raise ProtocolError("a block status leaves out a context")

    def _find(self, cookie: int) -> Operation:
        operation = self._pending.get(cookie)
        if operation is None:
            raise ProtocolError(f"reply to no request: cookie={cookie}")
        return operation


def _take_error(operation: Operation, kind: int, payload: bytes | bytearray) -> None:
    tail = _OFFSET.size if kind == Chunk.ERROR_OFFSET else 0
    if len(payload) < _ERROR.size + tail:
        raise ProtocolError(f"bad error: bytes={len(payload)}")
    error, text_bytes = _ERROR.unpack_from(payload)
    if text_bytes > min(len(payload) - _ERROR.size - tail, STRING_BYTES_MAX):
        raise ProtocolError(f"text of an error is too long: bytes={text_bytes}")
    if not error:
        raise ProtocolError("an error without a number")
    end = _ERROR.size + text_bytes
    if tail:
        (at,) = _OFFSET.unpack_from(payload, end)
        if not operation.offset <= at < operation.offset + operation.length:
            raise ProtocolError(f"an error outside its request: offset={at}")
    operation.fail(error, bytes(payload[_ERROR.size : end]).decode(errors="replace"))
