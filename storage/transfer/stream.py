r"""The stream that `cenote send` makes and `cenote receive` takes: bytes and values, no I/O.

A stream carries one snapshot, whole or as its difference to another. Format version 1,
little-endian; offsets and sizes in bytes of the volume unless said otherwise; all are multiples of
4096. A header comes first:

    offset  size  field           meaning
         0     8  magic           b"CENOSEND"
         8     2  version         u16; newer is refused
        10     2  flags           u16, zero; others are refused
        12     2  volume_bytes    u16, length of the first text, at most 256; and so on
        14     2  snapshot_bytes  u16
        16     2  base_bytes      u16
        18     2  created_bytes   u16
        20     4  zero            zeros
        24     8  size_bytes      u64, of the snapshot
        32     8  start           u64, where it begins: 0, or where another was interrupted
        40    16  snapshot        UUID of the snapshot, the same wherever it was sent to
        56    16  base            UUID of the snapshot that it is the difference to, or zeros
        72     8  checksum        xxh3_64 of bytes 0..71 and the texts
        80     -  texts           UTF-8: volume, snapshot, base as VOL@SNAP, when it was made

Then records, in ascending order of their offsets, without overlaps:

    offset  size  field           meaning
         0     2  type            u16
         2     2  form            u16, of the payload: 0 as it is, 1 lz4 block, without a size
         4     4  payload_bytes   u32, of the payload that follows the record
         8     8  offset          u64
        16     8  length          u64
        24     8  checksum        xxh3_64 of the checksum before, bytes 0..23 and the payload
        32     -  payload         nothing is padded

    type 1  DATA    `length` bytes, at most 256 KiB, from `offset` on
    type 2  ZEROES  this range reads as zeroes now
    type 3  END     offset is the size. Payload of 4 u64: records before it, bytes of the volume
                    in DATA and in ZEROES, bytes of their payloads. Nothing follows
    type 4  FAILED  the sender gave up; the payload is text that says why. Nothing follows

Ranges without a record are as in the base; without a base they are zeroes. As checksums are
chained, a record that is missing, doubled or out of place is found by the next one, and the last
one covers the stream. They find accidents, not forgeries: send over a channel that cannot be
tampered with, such as ssh.

The same two snapshots always give the same ranges in the same order, however they are cut into
records, so an offset says how far a receiver got; see `storage.catalogue.resume_token`.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

import xxhash
from typing_extensions import Buffer

from storage.errors import DamagedError, FormatVersionError, StreamError
from storage.format import codec
from storage.format.entry import BLOCK_BYTES, LZ4

MAGIC = b"CENOSEND"
VERSION = 1
DATA_BYTES_MAX = 256 << 10
"""Content of one record, which both ends hold in memory; lz4 saves little more on longer ones."""
TEXT_BYTES_MAX = 256
FAILED_BYTES_MAX = 1024
SIZE_BYTES_MAX = BLOCK_BYTES << 40

DATA, ZEROES, END, FAILED = 1, 2, 3, 4
RAW_FORM, LZ4_FORM = 0, 1

SUFFIX = "+receiving"
"""Appended to a volume's name, it names the volume that a snapshot of it is received into."""

NOTHING = UUID(int=0)
_HEADER = struct.Struct("<8sHHHHHHIQQ16s16sQ")
_RECORD = struct.Struct("<HHIQQ")
_CHECKSUM = struct.Struct("<Q")
_TOTALS = struct.Struct("<4Q")
assert _HEADER.size == 80
assert _RECORD.size + _CHECKSUM.size == 32
_RECORD_BYTES = 32
_CHECKED_HEADER_BYTES = 72


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """A decoded header; `base` is None for a whole snapshot, and `created` is for display."""

    snapshot: UUID
    base: UUID | None
    size_bytes: int
    start: int
    volume: str
    name: str
    base_name: str = ""
    created: str = ""


@dataclass(frozen=True, slots=True)
class Data:
    """New content of a range; the payload is verified, and not expanded yet."""

    offset: int
    length: int
    form: int
    payload: bytes

    def content(self) -> bytes:
        """Return `length` bytes. Raises StreamError if the payload does not expand to them."""
        if self.form == RAW_FORM:
            return self.payload
        try:
            plain = codec.expand(LZ4, self.payload, self.length)
        except DamagedError as error:
            raise StreamError(f"the stream is damaged: {error}") from error
        if len(plain) != self.length:
            raise StreamError(f"the stream is damaged: bytes={len(plain)} of {self.length}")
        return plain


@dataclass(frozen=True, slots=True)
class Zeroes:
    """A range that reads as zeroes now."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Totals:
    """The counts of an END record: records and bytes before it."""

    records: int = 0
    data_bytes: int = 0
    zero_bytes: int = 0
    payload_bytes: int = 0

    def plus(self, length: int, payload_bytes: int, *, zero: bool) -> "Totals":
        """Return the totals with one more record."""
        data_bytes = self.data_bytes + (0 if zero else length)
        zero_bytes = self.zero_bytes + (length if zero else 0)
        return Totals(self.records + 1, data_bytes, zero_bytes, self.payload_bytes + payload_bytes)


@dataclass(frozen=True, slots=True)
class Failed:
    """The sender gave up; `message` says why."""

    message: str


Event = StreamHeader | Data | Zeroes | Totals | Failed


def _checksum(before: int, head: bytes, payload: Buffer) -> int:
    digest = xxhash.xxh3_64(_CHECKSUM.pack(before))
    digest.update(head)
    digest.update(payload)
    return digest.intdigest()


# -- writing


class Encoder:
    """Makes the bytes of one stream: `header` first, `end` or `failed` last."""

    def __init__(self, header: StreamHeader) -> None:
        self.totals = Totals()
        self._size_bytes = header.size_bytes
        self._header = header
        self._chain = 0

    def header(self) -> bytes:
        """The header."""
        h = self._header
        texts = [text.encode() for text in (h.volume, h.name, h.base_name, h.created)]
        assert all(len(text) <= TEXT_BYTES_MAX for text in texts)
        base = NOTHING if h.base is None else h.base
        head = _HEADER.pack(
            MAGIC, VERSION, 0, *map(len, texts), 0, h.size_bytes, h.start, h.snapshot.bytes,
            base.bytes, 0,
        )[:_CHECKED_HEADER_BYTES]  # fmt: skip
        tail = b"".join(texts)
        self._chain = codec.digest_of(head + tail)
        return head + _CHECKSUM.pack(self._chain) + tail

    def data(self, offset: int, content: Buffer) -> bytes:
        """A DATA record, compressed if that saves enough; at most DATA_BYTES_MAX of content."""
        length = memoryview(content).nbytes
        assert 0 < length <= DATA_BYTES_MAX
        packed = codec.compress(content, length)
        payload = bytes(memoryview(content)) if packed is None else packed
        self.totals = self.totals.plus(length, len(payload), zero=False)
        form = RAW_FORM if packed is None else LZ4_FORM
        return self._record(DATA, form, offset, length, payload)

    def zeroes(self, offset: int, length: int) -> bytes:
        """A ZEROES record, for a range of any length."""
        self.totals = self.totals.plus(length, 0, zero=True)
        return self._record(ZEROES, 0, offset, length, b"")

    def end(self) -> bytes:
        """The END record, after all others."""
        t = self.totals
        payload = _TOTALS.pack(t.records, t.data_bytes, t.zero_bytes, t.payload_bytes)
        return self._record(END, 0, self._size_bytes, 0, payload)

    def failed(self, message: str) -> bytes:
        """The FAILED record, when sending cannot go on."""
        payload = message.encode(errors="replace")[:FAILED_BYTES_MAX]
        return self._record(FAILED, 0, 0, 0, payload)

    def _record(self, kind: int, form: int, offset: int, length: int, payload: bytes) -> bytes:
        head = _RECORD.pack(kind, form, len(payload), offset, length)
        self._chain = _checksum(self._chain, head, payload)
        return b"".join((head, _CHECKSUM.pack(self._chain), payload))


# -- reading


class Decoder:
    """Feed with `receive`, drain with `next_event` until it gives None, `close` at the end.

    It holds the bytes that were fed and not yet taken. A length that is more than a record may have
    is refused before its bytes are waited for (R18).
    """

    def __init__(self) -> None:
        self.header: StreamHeader | None = None
        self.totals = Totals()
        self.position = 0
        """The events so far describe everything before this offset."""
        self.ended = False
        """Set when END or FAILED was taken; nothing may follow."""
        self._buffer = bytearray()
        self._chain = 0

    def receive(self, data: Buffer) -> None:
        """Take bytes of the stream. Raises StreamError if they follow its end."""
        self._buffer += memoryview(data)
        if self.ended and self._buffer:
            raise StreamError("something follows behind the end of the stream")

    def next_event(self) -> Event | None:
        """Return the header, then each record; None when more has to be fed.

        Raises:
            StreamError: this is no stream, or it is damaged; do not trust any of it from here on.
            FormatVersionError: the stream was made by a newer Cenote.
        """
        if self.header is None:
            return self._next_header()
        if self.ended or len(self._buffer) < _RECORD_BYTES:
            return None
        kind, form, payload_bytes, offset, length = _RECORD.unpack_from(self._buffer)
        self._check_record(kind, form, payload_bytes, offset, length)
        end = _RECORD_BYTES + payload_bytes
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[_RECORD_BYTES:end])
        head = bytes(self._buffer[: _RECORD.size])
        (claimed,) = _CHECKSUM.unpack_from(self._buffer, _RECORD.size)
        self._chain = _checksum(self._chain, head, payload)
        if claimed != self._chain:
            raise StreamError(
                f"the stream is damaged: checksum mismatch behind offset {self.position}"
            )
        del self._buffer[:end]
        return self._take(kind, form, offset, length, payload)

    def close(self) -> None:
        """Note the end of the input. Raises StreamError unless the stream is whole."""
        if self.header is None:
            raise StreamError("this is no stream of cenote send: it ends within the header")
        if not self.ended:
            raise StreamError(f"the stream ends early, behind offset {self.position}")

    def _next_header(self) -> StreamHeader | None:
        start = bytes(self._buffer[: len(MAGIC)])
        if start != MAGIC[: len(start)]:
            raise StreamError("this is no stream of cenote send")
        if len(self._buffer) < _HEADER.size:
            return None
        fields = _HEADER.unpack_from(self._buffer)
        _, version, flags, *lengths, _, size_bytes, first, snapshot, base, claimed = fields
        if version > VERSION:
            raise FormatVersionError(f"the stream is of a newer cenote: version={version}")
        if max(lengths) > TEXT_BYTES_MAX:
            raise StreamError("the header of the stream is damaged")
        end = _HEADER.size + sum(lengths)
        if len(self._buffer) < end:
            return None
        texts = bytes(self._buffer[_HEADER.size : end])
        checksum = codec.digest_of(bytes(self._buffer[:_CHECKED_HEADER_BYTES]) + texts)
        fits = 0 < size_bytes <= SIZE_BYTES_MAX and first <= size_bytes
        if checksum != claimed or not fits or (size_bytes | first) % BLOCK_BYTES:
            raise StreamError("the header of the stream is damaged")
        if version != VERSION or flags:
            raise FormatVersionError(f"the stream is of another cenote: {version=} {flags=}")
        del self._buffer[:end]
        self._chain, self.position = checksum, first
        origin = None if base == NOTHING.bytes else UUID(bytes=base)
        self.header = StreamHeader(
            UUID(bytes=snapshot), origin, size_bytes, first, *_texts(texts, lengths)
        )
        return self.header

    def _check_record(
        self, kind: int, form: int, payload_bytes: int, offset: int, length: int
    ) -> None:
        """Refuse an impossible record before its payload is waited for or allocated (R18)."""
        assert self.header is not None
        size_bytes = self.header.size_bytes
        plain = form == RAW_FORM
        inside = self.position <= offset and 0 < length <= size_bytes - offset
        if kind == DATA:
            ok = inside and length <= DATA_BYTES_MAX
            ok = ok and (payload_bytes == length if plain else 0 < payload_bytes < length)
            ok = ok and form in (RAW_FORM, LZ4_FORM)
        elif kind == ZEROES:
            ok = inside and plain and not payload_bytes
        elif kind == END:
            ok = plain and offset == size_bytes and not length and payload_bytes == _TOTALS.size
        else:
            ok = kind == FAILED and plain and not (offset or length)
            ok = ok and payload_bytes <= FAILED_BYTES_MAX
        if not ok or (offset | length) % BLOCK_BYTES:
            raise StreamError(f"the stream is damaged: bad record behind offset {self.position}")

    def _take(self, kind: int, form: int, offset: int, length: int, payload: bytes) -> Event:
        if kind in (END, FAILED):
            self.ended = True
            if self._buffer:
                raise StreamError("something follows behind the end of the stream")
            if kind == FAILED:
                return Failed(payload.decode(errors="replace"))
            if Totals(*_TOTALS.unpack(payload)) != self.totals:
                raise StreamError("the stream is damaged: its totals do not add up")
            return self.totals
        self.totals = self.totals.plus(length, len(payload), zero=kind == ZEROES)
        self.position = offset + length
        return Zeroes(offset, length) if kind == ZEROES else Data(offset, length, form, payload)


def _texts(raw: bytes, lengths: list[int]) -> list[str]:
    texts = []
    for length in lengths:
        try:
            texts.append(raw[:length].decode())
        except UnicodeDecodeError:
            raise StreamError("the header of the stream is damaged: not UTF-8") from None
        raw = raw[length:]
    return texts
