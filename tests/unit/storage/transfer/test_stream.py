"""The bytes of a stream: golden values, round trips in any pieces, and every possible damage."""

import struct
from dataclasses import replace
from uuid import UUID

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.catalogue.resume_token import ResumeToken
from storage.errors import FormatVersionError, InvalidArgumentError, StreamError
from storage.transfer.stream import (
    DATA_BYTES_MAX,
    Data,
    Decoder,
    Encoder,
    Event,
    Failed,
    StreamHeader,
    Totals,
    Zeroes,
)

BLOCK = 4096
HEADER = StreamHeader(
    UUID(int=7), UUID(int=9), 1 << 30, 0, "vol", "snap", "vol@base", "2030-01-01T00:00:00+00:00"
)
TEXTS = b"volsnapvol@base2030-01-01T00:00:00+00:00"


def take_into(found: list[Event], stream: bytes, piece: int = 1 << 20) -> None:
    decoder = Decoder()
    for start in range(0, len(stream), piece):
        decoder.receive(stream[start : start + piece])
        while (event := decoder.next_event()) is not None:
            found.append(event)
    decoder.close()


def events_of(stream: bytes, piece: int = 1 << 20) -> list[Event]:
    """All events of a whole stream. Raises StreamError, FormatVersionError."""
    found = list[Event]()
    take_into(found, stream, piece)
    return found


def example() -> bytes:
    encoder = Encoder(HEADER)
    return b"".join(
        (
            encoder.header(),
            encoder.data(0, b"text" * 1024),
            encoder.zeroes(BLOCK, 8 * BLOCK),
            encoder.data(1 << 20, bytes(range(256)) * 16 + xxhash.xxh3_128(b"").digest() * 256),
            encoder.end(),
        )
    )


def test_fields_are_where_the_tables_say() -> None:
    stream = example()
    assert stream[:24] == b"CENOSEND" + struct.pack("<HHHHHHI", 1, 0, 3, 4, 8, 25, 0)
    assert struct.unpack_from("<QQ", stream, 24) == (1 << 30, 0)
    assert stream[40:72] == UUID(int=7).bytes + UUID(int=9).bytes
    assert stream[80:120] == TEXTS
    chain = xxhash.xxh3_64_intdigest(stream[:72] + TEXTS)
    assert struct.unpack_from("<Q", stream, 72)[0] == chain
    at, heads = 120, []
    while at < len(stream):
        head = struct.unpack_from("<HHIQQQ", stream, at)
        payload = stream[at + 32 : at + 32 + head[2]]
        chain = xxhash.xxh3_64_intdigest(struct.pack("<Q", chain) + stream[at : at + 24] + payload)
        assert head[5] == chain
        heads.append(head[:5])
        at += 32 + head[2]
    first, second = heads[0][2], heads[2][2]
    assert heads == [
        (1, 1, first, 0, BLOCK),
        (2, 0, 0, BLOCK, 8 * BLOCK),
        (1, 1, second, 1 << 20, 2 * BLOCK),
        (3, 0, 32, 1 << 30, 0),
    ]
    assert first < 100
    totals = struct.unpack("<4Q", stream[-32:])
    assert totals == (3, 3 * BLOCK, 8 * BLOCK, first + second)


Told = list[tuple[int, bytes | int]]


@st.composite
def told(draw: st.DrawFn) -> Told:
    """Offsets with data or a length of zeroes, in order."""
    found: Told = []
    at = 0
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.sampled_from([0, 1, 5, 1000])) * BLOCK
        blocks = draw(st.sampled_from([1, 1, 2, 7, 64]))
        kind = draw(st.sampled_from("rtz"))
        if kind == "z":
            found.append((at, blocks * BLOCK))
        elif kind == "t":
            found.append((at, draw(st.binary(min_size=4, max_size=4)) * (blocks * BLOCK // 4)))
        else:
            seed = draw(st.integers(0, 2**32))
            noise = b"".join(
                xxhash.xxh3_128_digest(i.to_bytes(4), seed) for i in range(blocks * BLOCK // 16)
            )
            found.append((at, noise))
        at += blocks * BLOCK
    return found


def encoded(ranges: Told, header: StreamHeader = HEADER) -> bytes:
    encoder = Encoder(header)
    parts = [encoder.header()]
    for offset, what in ranges:
        parts.append(
            encoder.zeroes(offset, what) if isinstance(what, int) else encoder.data(offset, what)
        )
    return b"".join((*parts, encoder.end()))


@given(told(), st.sampled_from([1, 31, 32, 4096, 1 << 20]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_round_trips_in_any_pieces(ranges: Told, piece: int, based: bool) -> None:
    header = HEADER if based else StreamHeader(UUID(int=1), None, 1 << 40, 0, "v", "s")
    stream = encoded(ranges, header)
    if piece < 32 and len(stream) > 100_000:
        piece = 4096
    first, *records, last = events_of(stream, piece)
    assert first == header
    found: Told = [
        (event.offset, event.content() if isinstance(event, Data) else event.length)
        for event in records
        if isinstance(event, Data | Zeroes)
    ]
    assert found == ranges
    assert isinstance(last, Totals)
    assert last.records == len(ranges)
    data = [what for _, what in ranges if isinstance(what, bytes)]
    assert last.data_bytes == sum(map(len, data))
    assert last.payload_bytes <= last.data_bytes
    assert last.zero_bytes == sum(what for _, what in ranges if isinstance(what, int))


def test_any_truncation_is_noticed() -> None:
    stream = example()
    for end in range(len(stream)):
        with pytest.raises(StreamError):
            events_of(stream[:end])


def test_any_wrong_byte_is_noticed_before_its_record_is_taken() -> None:
    """No event is made of a record before all of the record was verified."""
    stream = example()
    good = events_of(stream)
    for at in range(len(stream)):
        for change in (1, 0x80, 0xFF):
            bad = bytearray(stream)
            bad[at] ^= change
            seen = list[Event]()
            with pytest.raises((StreamError, FormatVersionError)):
                take_into(seen, bytes(bad))
            assert seen == good[: len(seen)]
            assert len(seen) < len(good)


def records_of(stream: bytes) -> list[bytes]:
    """The header, and each record."""
    found, at = [stream[:120]], 120
    while at < len(stream):
        end = at + 32 + struct.unpack_from("<I", stream, at + 4)[0]
        found.append(stream[at:end])
        at = end
    return found


def test_records_that_are_missing_doubled_or_swapped_are_noticed() -> None:
    """Also between streams: equal records of one stream do not fit into another."""
    parts = records_of(example())
    elsewhere = Encoder(replace(HEADER, snapshot=UUID(int=8)))
    wrong = [parts[:i] + parts[i + 1 :] for i in range(len(parts))]
    wrong += [[*parts[:i], parts[i], *parts[i:]] for i in range(len(parts))]
    wrong += [[*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]] for i in range(len(parts) - 1)]
    wrong += [[elsewhere.header(), *parts[1:]], [*parts, b"\0"]]
    for each in wrong:
        with pytest.raises(StreamError):
            events_of(b"".join(each))


def sealed(kind: int, form: int, offset: int, length: int, payload: bytes, claim: int) -> bytes:
    """A header and one record with a right checksum and these fields, which may be wrong."""
    start = Encoder(HEADER).header()
    (chain,) = struct.unpack_from("<Q", start, 72)
    head = struct.pack("<HHIQQ", kind, form, claim, offset, length)
    checksum = xxhash.xxh3_64_intdigest(struct.pack("<Q", chain) + head + payload)
    return start + head + struct.pack("<Q", checksum) + payload


@pytest.mark.parametrize(
    ("kind", "form", "offset", "length", "payload"),
    [
        (0, 0, 0, 0, b""),
        (5, 0, 0, 0, b""),
        (1, 0, 0, 0, b""),
        (1, 0, 1, BLOCK, b"x" * BLOCK),
        (1, 0, 0, BLOCK - 1, b"x" * (BLOCK - 1)),
        (1, 0, 0, BLOCK, b"x"),
        (1, 2, 0, BLOCK, b"x" * 10),
        (1, 1, 0, BLOCK, b""),
        (1, 1, 0, BLOCK, b"x" * BLOCK),
        (1, 0, 0, DATA_BYTES_MAX + BLOCK, b""),
        (1, 0, 1 << 30, BLOCK, b"x" * BLOCK),
        (1, 0, 2**64 - BLOCK, BLOCK, b"x" * BLOCK),
        (2, 0, 0, 2**64 - BLOCK, b""),
        (2, 0, 0, BLOCK, b"x"),
        (2, 1, 0, BLOCK, b""),
        (3, 0, 0, 0, bytes(32)),
        (3, 0, 1 << 30, 0, bytes(31)),
        (3, 0, 1 << 30, 0, b"\1" + bytes(31)),
        (4, 0, 0, BLOCK, b"why"),
        (4, 0, 0, 0, b"x" * 1025),
    ],
)
def test_an_impossible_record_with_a_right_checksum_is_refused(
    kind: int, form: int, offset: int, length: int, payload: bytes
) -> None:
    with pytest.raises(StreamError):
        events_of(sealed(kind, form, offset, length, payload, len(payload)))


@pytest.mark.parametrize(("kind", "claim"), [(1, 2**32 - 1), (2, 1 << 20), (3, 33), (4, 1 << 30)])
def test_a_length_that_is_too_large_is_refused_at_once(kind: int, claim: int) -> None:
    """R18: not only after so many bytes have arrived."""
    decoder = Decoder()
    decoder.receive(sealed(kind, 1, 0, BLOCK, b"", claim))
    decoder.next_event()
    with pytest.raises(StreamError):
        decoder.next_event()


@pytest.mark.parametrize("payload", [b"\xff" * 40, b"\x0f", b"\x10a"])
def test_a_payload_that_does_not_expand_is_refused(payload: bytes) -> None:
    stream = sealed(1, 1, 0, BLOCK, payload, len(payload))
    decoder = Decoder()
    decoder.receive(stream)
    decoder.next_event()
    event = decoder.next_event()
    assert isinstance(event, Data)
    with pytest.raises(StreamError):
        event.content()


def test_a_sender_that_gives_up_says_why() -> None:
    encoder = Encoder(HEADER)
    stream = encoder.header() + encoder.data(0, b"x" * BLOCK) + encoder.failed("disk \u00fc" * 400)
    *_, last = events_of(stream)
    assert isinstance(last, Failed)
    assert last.message.startswith("disk \u00fcdisk")


def test_other_versions_are_refused_with_their_number() -> None:
    stream = bytearray(example())
    stream[8] = 2
    with pytest.raises(FormatVersionError, match="newer cenote"):
        events_of(bytes(stream))
    stream[8], stream[10] = 1, 1
    struct.pack_into("<Q", stream, 72, xxhash.xxh3_64_intdigest(bytes(stream[:72]) + TEXTS))
    with pytest.raises(FormatVersionError, match="another cenote"):
        events_of(bytes(stream))


@given(st.uuids(), st.none() | st.uuids(), st.integers(0, 2**52 - 1))
def test_tokens_round_trip(snapshot: UUID, base: UUID | None, blocks: int) -> None:
    token = ResumeToken(snapshot, base, blocks * BLOCK)
    assert ResumeToken.parse(str(token)) == token
    assert len(str(token)) == 61


@given(st.text(max_size=80), st.integers(0, 60), st.characters())
def test_any_text_is_a_token_or_a_clear_error(text: str, at: int, other: str) -> None:
    token = str(ResumeToken(UUID(int=1), None, BLOCK))
    for bad in (text, token[:at] + other + token[at + 1 :]):
        if bad != token:
            with pytest.raises(InvalidArgumentError):
                ResumeToken.parse(bad)
