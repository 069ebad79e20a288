"""Encodes the replies of the transmission phase, server side. No I/O.

Source: NBD proto.md, "Transmission phase", and its extension "extended headers".
Big-endian; sizes in bytes.

    simple reply              structured reply chunk         extended reply chunk
    offset  size  field       offset  size  field            offset  size  field
         0     4  0x67446698       0     4  0x668e33ef            0     4  0x6e8a278c
         4     4  error            4     2  flags, bit 0 = DONE   4     2  flags
         8     8  cookie           6     2  type                  6     2  type
        16     -  READ data        8     8  cookie                8     8  cookie
                                  16     4  payload length       16     8  offset of the request
                                  20     -  payload              24     8  payload length
                                                                 32     -  payload

Negotiation settles which kind a connection gets, so a session holds an object of one
of the three classes here. The data of a READ follows its head as a separate buffer,
uncopied.
"""

import struct
from collections.abc import Sequence
from typing import Protocol

from nbd.constants import (
    CHUNK_DONE,
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
)

Status = Sequence[tuple[int, int]]
"""Length in bytes and state of each run, in order."""

_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_DATA_CHUNK = struct.Struct(">IHHQIQ")
_EXTENDED = struct.Struct(">IHHQQQ")
_EXTENDED_DATA = struct.Struct(">IHHQQQQ")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_MESSAGE_BYTES_MAX = 1024

_READ = int(Command.READ)
_STATUS = int(Command.BLOCK_STATUS)
# Plain ints: packing members of an enum costs more.
_DATA = int(Chunk.OFFSET_DATA)
_NONE = int(Chunk.NONE)
assert _SIMPLE.size == 16
assert _CHUNK.size == 20
assert _EXTENDED.size == 32


class Replies(Protocol):
    """Encodes the replies of one connection. `offset` is always the offset of the request."""

    chunked: bool
    """Whether a READ may be answered in several pieces."""

    def done(self, kind: int, cookie: int, offset: int) -> bytes:
        """Return a success reply without data."""

    def data(self, cookie: int, offset: int, length: int) -> bytes:
        """Return the head of a whole READ; the data follows it."""

    def error(self, kind: int, cookie: int, offset: int, error: int, message: str) -> bytes:
        """Return an error reply."""

    def piece(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """Return the head of a part of a READ; the data follows it. Needs `chunked`."""

    def hole(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """Return a part of a READ that is zero. Needs `chunked`."""

    def status(self, cookie: int, offset: int, context: int, runs: Status, *, last: bool) -> bytes:
        """Return a block status in one context. Needs `chunked`."""


class SimpleReplies:
    """Simple replies only, for clients that agreed on no other form."""

    chunked = False

    def done(self, kind: int, cookie: int, offset: int) -> bytes:
        """See Replies."""
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def data(self, cookie: int, offset: int, length: int) -> bytes:
        """See Replies."""
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, kind: int, cookie: int, offset: int, error: int, message: str) -> bytes:
        """See Replies."""
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, cookie)

    def piece(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """Never called, as `chunked` is False."""
        raise NotImplementedError

    def hole(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """Never called, as `chunked` is False."""
        raise NotImplementedError

    def status(self, cookie: int, offset: int, context: int, runs: Status, *, last: bool) -> bytes:
        """Never called, as `chunked` is False."""
        raise NotImplementedError


class StructuredReplies:
    """READ and BLOCK_STATUS in chunks; other replies stay simple, which is shorter."""

    chunked = True

    def done(self, kind: int, cookie: int, offset: int) -> bytes:
        """See Replies."""
        if kind in (_READ, _STATUS):
            return self._chunk(_NONE, cookie, b"", last=True)
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def data(self, cookie: int, offset: int, length: int) -> bytes:
        """See Replies."""
        return _DATA_CHUNK.pack(
            STRUCTURED_REPLY_MAGIC, CHUNK_DONE, _DATA, cookie, length + 8, offset
        )

    def error(self, kind: int, cookie: int, offset: int, error: int, message: str) -> bytes:
        """See Replies."""
        if kind in (_READ, _STATUS):
            return self._chunk(Chunk.ERROR, cookie, _error(error, message), last=True)
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, cookie)

    def piece(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """See Replies."""
        return _DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, last, _DATA, cookie, length + 8, at)

    def hole(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """See Replies."""
        return self._chunk(Chunk.OFFSET_HOLE, cookie, _HOLE.pack(at, length), last=last)

    def status(self, cookie: int, offset: int, context: int, runs: Status, *, last: bool) -> bytes:
        """See Replies. Lengths fit 32 bits, as those of requests do."""
        words = [word for run in runs for word in run]
        payload = struct.pack(f">I{len(words)}I", context, *words)
        return self._chunk(Chunk.BLOCK_STATUS, cookie, payload, last=last)

    def _chunk(self, kind: int, cookie: int, payload: bytes, *, last: bool) -> bytes:
        head = _CHUNK.pack(STRUCTURED_REPLY_MAGIC, last, kind, cookie, len(payload))
        return head + payload


class ExtendedReplies:
    """All replies in chunks with 64-bit lengths."""

    chunked = True

    def done(self, kind: int, cookie: int, offset: int) -> bytes:
        """See Replies."""
        return _EXTENDED.pack(EXTENDED_REPLY_MAGIC, CHUNK_DONE, _NONE, cookie, offset, 0)

    def data(self, cookie: int, offset: int, length: int) -> bytes:
        """See Replies."""
        return _EXTENDED_DATA.pack(
            EXTENDED_REPLY_MAGIC, CHUNK_DONE, _DATA, cookie, offset, length + 8, offset
        )

    def error(self, kind: int, cookie: int, offset: int, error: int, message: str) -> bytes:
        """See Replies."""
        return self._chunk(Chunk.ERROR, cookie, offset, _error(error, message), last=True)

    def piece(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """See Replies."""
        return _EXTENDED_DATA.pack(
            EXTENDED_REPLY_MAGIC, last, _DATA, cookie, offset, length + 8, at
        )

    def hole(self, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        """See Replies."""
        return self._chunk(Chunk.OFFSET_HOLE, cookie, offset, _HOLE.pack(at, length), last=last)

    def status(self, cookie: int, offset: int, context: int, runs: Status, *, last: bool) -> bytes:
        """See Replies."""
        words = [word for run in runs for word in run]
        payload = struct.pack(f">II{len(words)}Q", context, len(runs), *words)
        return self._chunk(Chunk.BLOCK_STATUS_EXT, cookie, offset, payload, last=last)

    def _chunk(self, kind: int, cookie: int, offset: int, payload: bytes, *, last: bool) -> bytes:
        head = _EXTENDED.pack(EXTENDED_REPLY_MAGIC, last, kind, cookie, offset, len(payload))
        return head + payload


def _error(error: int, message: str) -> bytes:
    """Return the payload of an error chunk; the text is cut to a length that any peer takes."""
    text = message.encode(errors="replace")[:_MESSAGE_BYTES_MAX].decode(errors="ignore").encode()
    return _ERROR.pack(error, len(text)) + text
