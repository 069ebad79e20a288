"""NBD transmission phase, server side: bytes in, requests out. No I/O.

Source: NBD proto.md, "Transmission phase", and its extension "extended headers".
Big-endian; sizes in bytes.

    request                         extended request
    offset  size  field             offset  size  field
         0     4  0x25609513             0     4  0x21e41c71
         4     2  flags                  4     2  flags
         6     2  type                   6     2  type
         8     8  cookie                 8     8  cookie
        16     8  offset                16     8  offset
        24     4  length                24     8  length
        28     -  WRITE payload         32     -  payload, if the flag PAYLOAD_LEN says so

A request is passed on as the plain tuple that `struct` gives, because building an
object for each costs more than the rest of its parsing.
"""

import mmap
import struct
from collections.abc import Collection

from typing_extensions import Buffer

from blockdev.device import EXTENTS_MAX
from nbd.constants import (
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    ExportFlag,
    WireError,
)
from nbd.errors import ProtocolError
from nbd.server.memory import Memory

Request = tuple[int, int, int, int, int, int]
"""magic, flags, type, cookie, offset, length."""

RECEIVE_BYTES = 256 << 10
"""Most bytes of one `recv`: as much as a Unix socket holds by default."""
OWN_BUFFER_BYTES = 64 << 10
"""Longer payloads that have not arrived whole are received into a buffer of their own."""
FILTER_CONTEXTS_MAX = 256
"""Contexts that one BLOCK_STATUS may name; an export has a few."""

_REQUEST = struct.Struct(">IHHQQI")
_EXTENDED = struct.Struct(">IHHQQQ")
_TYPE_AT = 7  # offset of the low byte of the type in either header
_WRITE = int(Command.WRITE)
_PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)
_MEMORY_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
assert _REQUEST.size == 28
assert _EXTENDED.size == 32


class RequestParser:
    """Receive into `room`, say how much with `received`, take each `next_request`.

    The flag PAYLOAD_LEN of an extended WRITE is inverted: clear when its payload
    came with it, as is usual, so that usual requests have no flags in either form.

    Args:
        payload_bytes_max: longer payloads are discarded as they arrive, never stored.
        memory: gives the large buffers.
        extended: whether requests have extended headers.
        early: bytes that arrived before the parser existed.
    """

    def __init__(
        self,
        *,
        payload_bytes_max: int,
        memory: Memory,
        extended: bool = False,
        early: bytes = b"",
    ) -> None:
        assert len(early) <= RECEIVE_BYTES
        self.payload: memoryview = memoryview(b"")
        """Payload of the last request that carried one; valid until the next request. Empty if
        it was discarded."""
        self.large: memoryview | None = None
        """The separate buffer into which a long payload is being received, if any."""
        self._payload_bytes_max = payload_bytes_max
        self._memory = memory
        self._extended = extended
        self._form, self._expected, self._flag_with_payload, self._kind_with_payload = (
            (_EXTENDED, EXTENDED_REQUEST_MAGIC, _PAYLOAD_LEN, -1)
            if extended
            else (_REQUEST, REQUEST_MAGIC, 0, _WRITE)
        )
        self.header_bytes = self._form.size
        """Size of a request's header."""
        # Its pages take memory only once bytes are received into them.
        self._buffer = memoryview(mmap.mmap(-1, RECEIVE_BYTES, flags=_MEMORY_FLAGS))
        self._buffer[: len(early)] = early
        self.usual = (
            self._form.unpack_from, self._form.size, self._expected, self._flag_with_payload,
            self._buffer,
        )  # fmt: skip
        """For the fast path: the function that unpacks a header, the header's size, its magic, the
        flags of a usual WRITE (other usual requests have none), and the buffer of `span`."""
        self._start = 0
        self._end = len(early)
        self._awaiting: Request | None = None  # its payload is still arriving
        self._large_filled = 0
        self._skip_bytes = 0  # bytes of the payload still to be discarded
        self._lent: memoryview | None = None  # the large buffer that `payload` is

    def room(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self.large is not None:
            return self.large[self._large_filled :]
        if self._start == self._end:
            self._start = self._end = 0
            return self._buffer
        if self._start > RECEIVE_BYTES // 2:
            # The bytes left are part of one small request: half the buffer has room for its rest.
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        return self._buffer[self._end :]

    def is_empty(self) -> bool:
        """Whether no part of a request is left."""
        return self._start == self._end and self._awaiting is None

    def span(self) -> tuple[int, int]:
        """Return start and end of the received requests in the buffer; (-1, -1) while the payload
        of a request is still arriving. Takes the payload of the last request back."""
        if self._lent is not None:
            self._take_back()
        if self._awaiting is not None:
            return -1, -1
        return self._start, self._end

    def served(self, start: int) -> None:
        """Note that the requests before `start` in the buffer were served."""
        self._start = start

    def needs_more(self) -> bool:
        """Whether a large payload is still arriving, so that no request is whole yet."""
        return self.large is not None and self._large_filled < len(self.large)

    def end(self) -> bytes:
        """Return the last bytes that arrived and are not parsed yet, enough for a DISC."""
        return bytes(self._buffer[max(self._start, self._end - _EXTENDED.size) : self._end])

    def received(self, count: int) -> bool:
        """Note that `count` bytes arrived in `room`; return whether a request may be whole now."""
        if self.large is not None:
            self._large_filled += count
            return self._large_filled == len(self.large)
        self._end += count
        # Most clients send a header ahead of its payload. Looking for requests in that header
        # alone would cost a small write as much as serving it.
        return self._end - self._start != self._form.size or not self._is_payload_underway()

    def _is_payload_underway(self) -> bool:
        """Whether the received header is that of a small write; other requests may be whole."""
        if self._buffer[self._start + _TYPE_AT] != _WRITE or self._awaiting is not None:
            return False
        magic, flags, kind, _, _, length = self._form.unpack_from(self._buffer, self._start)
        return (
            magic == self._expected
            and bool(kind == self._kind_with_payload or flags & self._flag_with_payload)
            and 0 < length <= min(OWN_BUFFER_BYTES, self._payload_bytes_max)
        )

    def next_request(self) -> Request | None:
        """Return the next whole request, None while more must be received. Its payload is in
        `payload` until the next request is taken.

        Raises:
            ProtocolError: bad magic, or too long a payload of an extended request.
        """
        self._take_back()
        if self._awaiting is not None:
            if not self._take_awaited():
                return None
            request, self._awaiting = self._awaiting, None
            return request
        first = self._start + self._form.size
        if first > self._end:
            return None
        request = self._form.unpack_from(self._buffer, self._start)
        magic, flags, kind, _, _, length = request
        if magic != self._expected:
            raise ProtocolError(f"bad request magic: magic={magic:#x}")
        carries = kind == self._kind_with_payload or flags & self._flag_with_payload
        if self._flag_with_payload and kind == _WRITE:
            request = (magic, flags ^ _PAYLOAD_LEN, *request[2:])
        if not carries:
            self._start = first
        elif first + length <= self._end:
            self._start = first + length
            self.payload = self._buffer[first : self._start]
        else:
            self._await_payload(request, first)
            return None
        return request

    def keep_payload(self) -> Buffer:
        """Return the last payload for the caller to keep, and to `Memory.recycle` in the end."""
        if self._lent is not None:
            payload, self._lent = self._lent, None
            return payload
        return bytes(self.payload)

    def _await_payload(self, request: Request, first: int) -> None:
        """Choose where the rest of a payload goes; the part that arrived begins at `first`.

        Raises:
            ProtocolError: an extended request has too long a payload.
        """
        length = request[5]
        if length > self._payload_bytes_max:
            if self._extended:
                raise ProtocolError(f"payload is too long: bytes={length}")
            self._skip_bytes = length - (self._end - first)
            self._start = self._end = 0
            self._awaiting = request
        elif length > OWN_BUFFER_BYTES:
            self.large = self._memory.buffer(length)
            arrived = self._end - first
            self.large[:arrived] = self._buffer[first : self._end]
            self._large_filled = arrived
            self._start = self._end = 0
            self._awaiting = request

    def _take_awaited(self) -> bool:
        """Return whether the awaited payload is complete, and make it `payload`."""
        if self.large is not None:
            if self._large_filled < len(self.large):
                return False
            self.payload = self._lent = self.large
            self.large = None
            return True
        skipped = min(self._skip_bytes, self._end - self._start)
        self._start += skipped
        self._skip_bytes -= skipped
        if self._skip_bytes:
            return False
        self.payload = memoryview(b"")
        return True

    def _take_back(self) -> None:
        if self._lent is not None:
            self._memory.recycle(self._lent)
            self._lent = None
            self.payload = memoryview(b"")


# Plain ints: `~` of an IntFlag has only the bits that have names, and `&` takes 1.5 us.
_ALWAYS = int(CommandFlag.FUA)  # every command accepts FUA once it was advertised
_DF = int(CommandFlag.DF)
_SEND_DF = int(ExportFlag.SEND_DF)
_READ_ONLY = int(ExportFlag.READ_ONLY)
_FLUSH = int(Command.FLUSH)
_BLOCK_STATUS = int(Command.BLOCK_STATUS)
_FLAGS: dict[int, int] = {
    Command.READ: _ALWAYS | CommandFlag.DF.value,
    Command.WRITE: _ALWAYS,
    Command.FLUSH: _ALWAYS,
    Command.TRIM: _ALWAYS,
    Command.CACHE: _ALWAYS,
    Command.WRITE_ZEROES: _ALWAYS | CommandFlag.NO_HOLE.value | CommandFlag.FAST_ZERO.value,
    Command.BLOCK_STATUS: _ALWAYS | CommandFlag.REQ_ONE.value,
}
_CHANGING = {Command.WRITE, Command.TRIM, Command.WRITE_ZEROES}
_TAKING_SPACE = {Command.WRITE, Command.WRITE_ZEROES}
_WITH_DATA = {Command.READ, Command.WRITE}
_STATUS_EXTENT_BYTES = 16
_STATUS_GRAIN_BYTES = 512


def refusal(
    request: Request, *, flags: int, size_bytes: int, grain_bytes: int, payload_max: int
) -> WireError | None:
    """Return the error of a request that must not reach the device, or None.

    Args:
        flags: the advertised flags of the export.
        size_bytes: current size of the device.
        grain_bytes: block size, a power of two; offsets and lengths are multiples of it.
        payload_max: longest data of READ and WRITE, in bytes.
    """
    _, request_flags, kind, _, offset, length = request
    allowed = _FLAGS.get(kind)
    if allowed is None or request_flags & ~allowed:
        return WireError.EINVAL
    if request_flags & _DF and not flags & _SEND_DF:
        return WireError.EINVAL
    if kind == _FLUSH:
        return None
    if kind in _CHANGING and flags & _READ_ONLY:
        return WireError.EPERM
    if kind in _WITH_DATA and length > payload_max:
        return WireError.EINVAL
    if offset + length > size_bytes:
        return WireError.ENOSPC if kind in _TAKING_SPACE else WireError.EINVAL
    if (offset | length) & (grain_bytes - 1):
        return WireError.EINVAL
    if kind == _BLOCK_STATUS and not length:
        return WireError.EINVAL  # there is no extent to report
    return None


def held_bytes(request: Request) -> int:
    """Return the bytes of memory that a waiting request holds: for its data or a long answer."""
    kind, length = request[2], request[5]
    if kind in _WITH_DATA:
        return length
    if kind == _BLOCK_STATUS:
        return _STATUS_EXTENT_BYTES * min(length // _STATUS_GRAIN_BYTES + 1, EXTENTS_MAX)
    return 0


def is_goodbye(end: bytes) -> bool:
    """Whether a client's last bytes end with DISC; by the protocol no byte follows one."""
    for form, expected in ((_REQUEST, REQUEST_MAGIC), (_EXTENDED, EXTENDED_REQUEST_MAGIC)):
        if len(end) >= form.size:
            magic, _, kind, _, _, _ = form.unpack(end[-form.size :])
            if magic == expected and kind == Command.DISC:
                return True
    return False


def decode_filter(payload: Buffer) -> tuple[int, tuple[int, ...]] | None:
    """Return the length and the contexts that a BLOCK_STATUS with payload asks about.

    The payload is 8 bytes of length, then 4 for each context; None for anything else.
    """
    view = memoryview(payload)
    if not 8 <= len(view) <= 8 + 4 * FILTER_CONTEXTS_MAX or len(view) % 4:
        return None
    raw = bytes(view)
    length, *contexts = struct.unpack(f">Q{(len(raw) - 8) // 4}I", raw)
    return length, tuple(contexts)


def narrow(
    request: Request, payload: Buffer | None, contexts: Collection[int]
) -> tuple[Request, tuple[int, ...] | None] | None:
    """Return a BLOCK_STATUS without its payload, and the contexts that the payload named, None if
    it has none; return None for a bad payload or contexts that were not selected.

    Args:
        payload: None with compact headers, whose requests have none.
        contexts: the selected contexts.
    """
    if not contexts:
        return None
    if payload is None or not request[1] & CommandFlag.PAYLOAD_LEN:
        return request, None
    narrowed = decode_filter(payload)
    if narrowed is None or not all(number in contexts for number in narrowed[1]):
        return None
    length, only = narrowed
    return (request[0], request[1] ^ CommandFlag.PAYLOAD_LEN, *request[2:5], length), only
