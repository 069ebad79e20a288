"""NBD transmission phase, server side: bytes in, requests out; replies to bytes. No I/O.

Source: NBD proto.md, "Transmission phase". Big-endian; sizes in bytes.

    request                         simple reply              structured reply chunk
    offset  size  field             offset  size  field       offset  size  field
         0     4  0x25609513             0     4  0x67446698       0     4  0x668e33ef
         4     2  flags                  4     4  error            4     2  flags, bit 0 = DONE
         6     2  type                   8     8  cookie           6     2  type
         8     8  cookie                16     -  READ data        8     8  cookie
        16     8  offset                                          16     4  payload length
        24     4  length                                          20     -  payload
        28     -  WRITE payload

A request travels as the plain tuple that `struct` gives, because building an
object for each costs more than the rest of its parsing.
"""

import mmap
import struct
from collections.abc import Iterator

from typing_extensions import Buffer

from nbd.constants import (
    CHUNK_DONE,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    CommandFlag,
    ExportFlag,
    WireError,
)
from nbd.errors import ProtocolError

Request = tuple[int, int, int, int, int, int]
"""magic, flags, type, cookie, offset, length."""

RECEIVE_BYTES = 256 << 10
"""What one `recv` can take: as much as a Unix socket holds by default."""
OWN_BUFFER_BYTES = 64 << 10
"""Longer payloads that have not arrived whole are received into a buffer of their own."""
SPARE_BYTES_MAX = 4 << 20
"""Larger payload buffers are given back after use: an idle client pins no more than this."""

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_DATA_CHUNK = struct.Struct(">IHHQIQ")
_REQUEST_BYTES = _REQUEST.size
_ERROR_FIELDS = struct.Struct(">IH")
_WRITE = int(Command.WRITE)
_MEMORY_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
assert _REQUEST_BYTES == 28
assert _SIMPLE.size == 16
assert _CHUNK.size == 20


def _memory(size: int) -> memoryview:
    """Return a buffer whose pages exist only once something is received into them."""
    return memoryview(mmap.mmap(-1, size, flags=_MEMORY_FLAGS))


class RequestParser:
    """Receive into `room`, say how much with `received`, drain `requests`.

    Args:
        payload_bytes_max: longer payloads are thrown away as they arrive, never stored.
        early: bytes that arrived before the parser existed.
    """

    def __init__(self, *, payload_bytes_max: int, early: bytes = b"") -> None:
        assert len(early) <= RECEIVE_BYTES
        self.payload: memoryview = memoryview(b"")
        """Data of the last WRITE; valid until the next request. Empty when it was thrown away."""
        self._payload_bytes_max = payload_bytes_max
        self._buffer = _memory(RECEIVE_BYTES)
        self._buffer[: len(early)] = early
        self._start = 0
        self._end = len(early)
        self._awaiting: Request | None = None  # its payload is underway, not in `_buffer`
        self._large: memoryview | None = None  # where that payload goes
        self._large_filled = 0
        self._skip_bytes = 0  # what is still to be thrown away of it
        self._spare: memoryview | None = None

    def room(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._large is not None:
            return self._large[self._large_filled :]
        if self._start == self._end:
            self._start = self._end = 0
            return self._buffer
        if self._start > RECEIVE_BYTES // 2:
            # What remains is part of one small request, so half the buffer holds the rest.
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """Say that `count` bytes arrived in `room`."""
        if self._large is not None:
            self._large_filled += count
        else:
            self._end += count

    def requests(self) -> Iterator[Request]:
        """Yield whole requests until more must be received; those with payload leave it in
        `payload`. Stopping in between is fine: a new iterator goes on behind the last request.

        Raises:
            ProtocolError: the stream is not at a request.
        """
        if self._awaiting is not None:
            if not self._take_awaited():
                return
            request, self._awaiting = self._awaiting, None
            yield request
        # A generator, for its local variables: calls and attributes cost more than parsing.
        buffer, unpack_from, end = self._buffer, _REQUEST.unpack_from, self._end
        start = self._start
        while end - start >= _REQUEST_BYTES:
            request = unpack_from(buffer, start)
            magic, _, kind, _, _, length = request
            if magic != REQUEST_MAGIC:
                raise ProtocolError(f"bad request magic: magic={magic:#x}")
            first = start + _REQUEST_BYTES
            if kind == _WRITE:
                start = first + length
                if start > end:
                    self._await_payload(request, first)
                    return
                self.payload = buffer[first:start]
            else:
                start = first
            self._start = start
            yield request

    def keep_payload(self) -> Buffer:
        """Return the last payload for as long as the caller wants it."""
        if self._spare is not None and self.payload.obj is self._spare.obj:
            self._spare = None
            return self.payload
        return bytes(self.payload)

    def _await_payload(self, request: Request, first: int) -> None:
        """Arrange where a payload goes that has not arrived whole; what has begins at `first`."""
        length = request[5]
        if length > self._payload_bytes_max:
            self._skip_bytes = length - (self._end - first)
            self._start = self._end = 0
            self._awaiting = request
        elif length > OWN_BUFFER_BYTES:
            self._large = self._take_spare(length)
            arrived = self._end - first
            self._large[:arrived] = self._buffer[first : self._end]
            self._large_filled = arrived
            self._start = self._end = 0
            self._awaiting = request

    def _take_awaited(self) -> bool:
        """Return whether the awaited payload is complete, and make it `payload`."""
        if self._large is not None:
            if self._large_filled < len(self._large):
                return False
            self.payload, self._large = self._large, None
            return True
        skipped = min(self._skip_bytes, self._end - self._start)
        self._start += skipped
        self._skip_bytes -= skipped
        if self._skip_bytes:
            return False
        self.payload = memoryview(b"")
        return True

    def _take_spare(self, length: int) -> memoryview:
        """Return room for `length` bytes, reusing the last large buffer when it fits."""
        spare = self._spare
        if spare is None or len(spare) < length or len(spare) > SPARE_BYTES_MAX:
            self._spare = spare = _memory(length)
        return spare[:length]


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """Return a simple reply; the data of a successful READ follows it."""
    return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def data_chunk(cookie: int, offset: int, length: int) -> bytes:
    """Return the head of the only chunk of a successful READ; the data follows it."""
    return _DATA_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.OFFSET_DATA, cookie, length + 8, offset
    )


def none_chunk(cookie: int) -> bytes:
    """Return a structured reply without content."""
    return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.NONE, cookie, 0)


def error_chunk(cookie: int, error: int, message: str = "") -> bytes:
    """Return a structured error reply."""
    text = message.encode(errors="replace")[:1024].decode(errors="ignore").encode()
    payload = _ERROR_FIELDS.pack(error, len(text)) + text
    return (
        _CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.ERROR, cookie, len(payload)) + payload
    )


# Plain ints: `~` of an IntFlag has only the bits that have names.
_ALWAYS = int(CommandFlag.FUA)  # accepted everywhere once it was advertised
_FLAGS: dict[int, int] = {
    Command.READ: _ALWAYS | CommandFlag.DF.value,
    Command.WRITE: _ALWAYS,
    Command.FLUSH: _ALWAYS,
    Command.TRIM: _ALWAYS,
    Command.WRITE_ZEROES: _ALWAYS | CommandFlag.NO_HOLE.value,
}
_CHANGING = {Command.WRITE, Command.TRIM, Command.WRITE_ZEROES}
_GROWING = {Command.WRITE, Command.WRITE_ZEROES}
_WITH_DATA = {Command.READ, Command.WRITE}


def refusal(
    request: Request, *, flags: ExportFlag, size_bytes: int, grain_bytes: int, payload_max: int
) -> WireError | None:
    """Return the error a request deserves before it meets a device, or None.

    Args:
        flags: what the export advertised.
        size_bytes: of the device now.
        grain_bytes: of offsets and lengths.
        payload_max: longest data of READ and WRITE.
    """
    _, request_flags, kind, _, offset, length = request
    allowed = _FLAGS.get(kind)
    if allowed is None or request_flags & ~allowed:
        return WireError.EINVAL
    if request_flags & CommandFlag.DF and not flags & ExportFlag.SEND_DF:
        return WireError.EINVAL
    if kind == Command.FLUSH:
        return None
    if kind in _CHANGING and flags & ExportFlag.READ_ONLY:
        return WireError.EPERM
    if kind in _WITH_DATA and length > payload_max:
        return WireError.EINVAL
    if offset + length > size_bytes:
        return WireError.ENOSPC if kind in _GROWING else WireError.EINVAL
    if (offset | length) & (grain_bytes - 1):
        return WireError.EINVAL
    return None
