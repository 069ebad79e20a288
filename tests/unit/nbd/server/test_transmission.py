"""Requests and replies, byte by byte. Numbers in docstrings are those of docs/nbd.md."""

import errno
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.constants import ExportFlag, WireError, wire_error
from nbd.errors import ProtocolError
from nbd.server.memory import Memory
from nbd.server.transmission import RECEIVE_BYTES, RequestParser, decode_filter, refusal
from tests.unit.nbd.wire import (
    CACHE,
    DF,
    DISC,
    FAST_ZERO,
    FLUSH,
    FUA,
    MIB,
    NO_HOLE,
    PAYLOAD_LEN,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    WRITE,
    ZEROES,
    extended_request,
    request,
    write,
)

Parsed = list[tuple[int, int, int, int, int, bytes]]
PAYLOAD_MAX = 1 << 20


def a_parser(early: bytes = b"", *, extended: bool = False) -> RequestParser:
    memory = Memory(64 * MIB, 1.0)
    return RequestParser(
        payload_bytes_max=PAYLOAD_MAX, memory=memory, early=early, extended=extended
    )


def parse(stream: bytes, piece: int = 1 << 30, early: int = 0, *, extended: bool = False) -> Parsed:
    """Feed a stream in pieces; return each request with its payload."""
    parser = a_parser(stream[:early], extended=extended)
    parsed: Parsed = []
    fed = early
    may_be_whole = True
    while True:
        for found in iter(parser.next_request, None):
            assert may_be_whole
            carries = (found[2] == WRITE) != (extended and bool(found[1] & PAYLOAD_LEN))
            payload = bytes(parser.payload) if carries else b""
            parsed.append((*found[1:], payload))
        if fed == len(stream):
            return parsed
        room = parser.room()
        count = min(len(room), piece, len(stream) - fed)
        assert count
        room[:count] = stream[fed : fed + count]
        may_be_whole = parser.received(count)
        fed += count


MIXED = (
    write(0, b"a" * 100, cookie=1)
    + request(READ, 4096, 512, cookie=2)
    + write(1, b"", cookie=3)
    + request(FLUSH, cookie=4)
    + write(2**63, b"b" * 700, cookie=2**64 - 1, flags=FUA)
    + request(DISC)
)


def test_requests_are_parsed_whole() -> None:
    assert parse(MIXED) == [
        (0, WRITE, 1, 0, 100, b"a" * 100),
        (0, READ, 2, 4096, 512, b""),
        (0, WRITE, 3, 1, 0, b""),
        (0, FLUSH, 4, 0, 0, b""),
        (FUA, WRITE, 2**64 - 1, 2**63, 700, b"b" * 700),
        (0, DISC, 7, 0, 0, b""),
    ]


@pytest.mark.parametrize("piece", [*range(1, 60), 128, 500, len(MIXED)])
@pytest.mark.parametrize("early", [0, 5, 200])
def test_parsing_ignores_packet_boundaries(piece: int, early: int) -> None:
    assert parse(MIXED, piece, early) == parse(MIXED)


@pytest.mark.parametrize("piece", [4096, 100_000, 1 << 30])
def test_long_streams_of_every_size(piece: int) -> None:
    """Payloads that fit the buffer, straddle its end, or get a buffer of their own."""
    rng = random.Random(piece)
    sizes = [rng.choice([1, 4096, 60_000, 65_536, 65_537, 300_000, MIB]) for _ in range(60)]
    payloads = [rng.randbytes(size) for size in sizes]
    stream = b"".join(write(n, data, cookie=n) for n, data in enumerate(payloads))
    assert [parsed[-1] for parsed in parse(stream, piece)] == payloads


@pytest.mark.parametrize("piece", [1000, RECEIVE_BYTES])
def test_an_oversized_payload_is_discarded_and_the_stream_stays_in_step(piece: int) -> None:
    """39, 52: no buffer of that size is allocated."""
    stream = write(0, b"x" * (PAYLOAD_MAX + 1), cookie=1) + request(READ, 0, 9, cookie=2)
    assert parse(stream, piece) == [
        (0, WRITE, 1, 0, PAYLOAD_MAX + 1, b""),
        (0, READ, 2, 0, 9, b""),
    ]


@pytest.mark.parametrize("size", [10, 70_000])
def test_a_kept_payload_outlives_the_next_request(size: int) -> None:
    parser = a_parser()
    kept = []
    for letter in (b"a", b"b", b"c"):
        stream = write(0, letter * size)
        while stream:
            room = parser.room()
            count = min(len(room), len(stream), 5000)
            room[:count] = stream[:count]
            stream = stream[count:]
            parser.received(count)
            kept += [parser.keep_payload() for _ in iter(parser.next_request, None)]
    assert [bytes(payload) for payload in kept] == [b"a" * size, b"b" * size, b"c" * size]


def test_bad_magic_ends_the_connection() -> None:
    """30."""
    with pytest.raises(ProtocolError, match="magic"):
        parse(MIXED[1:])


EXTENDED = (
    extended_request(WRITE, 0, 100, cookie=1, flags=PAYLOAD_LEN)
    + b"a" * 100
    + extended_request(TRIM, 4096, 1 << 40, cookie=2)
    + extended_request(WRITE, 0, 1 << 33, cookie=3)  # no payload follows
    + extended_request(STATUS, 0, 12, cookie=4, flags=PAYLOAD_LEN | REQ_ONE)
    + b"b" * 12
    + extended_request(READ, 0, 5, cookie=5, flags=PAYLOAD_LEN)
    + b"c" * 5
    + extended_request(WRITE, 8, 200_000, cookie=6, flags=PAYLOAD_LEN | FUA)
    + b"d" * 200_000
)


@pytest.mark.parametrize("piece", [1, 31, 33, 1000, 1 << 30])
def test_extended_requests_carry_a_payload_if_their_flag_says_so(piece: int) -> None:
    """57, 58: and the flag of a WRITE is inverted."""
    assert parse(EXTENDED, piece, extended=True) == [
        (0, WRITE, 1, 0, 100, b"a" * 100),
        (0, TRIM, 2, 4096, 1 << 40, b""),
        (PAYLOAD_LEN, WRITE, 3, 0, 1 << 33, b""),
        (PAYLOAD_LEN | REQ_ONE, STATUS, 4, 0, 12, b"b" * 12),
        (PAYLOAD_LEN, READ, 5, 0, 5, b"c" * 5),
        (FUA, WRITE, 6, 8, 200_000, b"d" * 200_000),
    ]


def test_absurd_extended_payloads_end_the_connection() -> None:
    """59."""
    absurd = extended_request(WRITE, 0, PAYLOAD_MAX + 1, flags=PAYLOAD_LEN)
    with pytest.raises(ProtocolError, match="payload is too long"):
        parse(absurd, extended=True)
    with pytest.raises(ProtocolError, match="magic"):
        parse(request(READ, 0, 4096) + bytes(4), extended=True)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ("0000000000001000" + "00000001", (4096, (1,))),
        ("0000000000001000", (4096, ())),
        ("ffffffffffffffff" + "00000001" * 2, (2**64 - 1, (1, 1))),
        ("00000000000010", None),
        ("0000000000001000" + "000001", None),
        ("00" * 4096, None),
        ("", None),
    ],
)
def test_filters_of_block_status(payload: str, expected: object) -> None:
    """61."""
    assert decode_filter(bytes.fromhex(payload)) == expected


ALL = ExportFlag.HAS_FLAGS | ExportFlag.SEND_DF
READ_ONLY = ALL | ExportFlag.READ_ONLY


@pytest.mark.parametrize(
    ("kind", "flags", "offset", "length", "export", "expected"),
    [
        (READ, 0, 0, 4096, ALL, None),
        (READ, 0, MIB - 1, 1, ALL, None),
        (READ, 0, MIB, 1, ALL, "EINVAL"),  # 37
        (READ, 0, 2**64 - 1, 2, ALL, "EINVAL"),
        (TRIM, 0, MIB, 1, ALL, "EINVAL"),
        (WRITE, 0, MIB - 1, 2, ALL, "ENOSPC"),
        (WRITE, 0, 2**64 - 1, 2**20, ALL, "ENOSPC"),
        (ZEROES, 0, 0, MIB + 1, ALL, "ENOSPC"),
        (WRITE, 0, 0, 1, READ_ONLY, "EPERM"),  # 38
        (ZEROES, 0, 0, 1, READ_ONLY, "EPERM"),
        (TRIM, 0, 0, 1, READ_ONLY, "EPERM"),
        (FLUSH, 0, 0, 0, READ_ONLY, None),
        (CACHE, 0, 0, 1, READ_ONLY, None),  # 46
        (CACHE, 0, MIB, 1, ALL, "EINVAL"),
        (STATUS, REQ_ONE, 0, 1, ALL, None),
        (STATUS, 0, 0, 0, ALL, "EINVAL"),
        (STATUS, 0, MIB, 1, ALL, "EINVAL"),  # 37
        (STATUS, PAYLOAD_LEN, 0, 1, ALL, "EINVAL"),
        (WRITE, PAYLOAD_LEN, 0, 1, ALL, "EINVAL"),  # 58
        (TRIM, PAYLOAD_LEN, 0, 1, ALL, "EINVAL"),
        (READ, FAST_ZERO, 0, 1, ALL, "EINVAL"),
        (99, 0, 0, 1, ALL, "EINVAL"),
        (READ, 1 << 15, 0, 1, ALL, "EINVAL"),
        (READ, NO_HOLE, 0, 1, ALL, "EINVAL"),
        (READ, REQ_ONE, 0, 1, ALL, "EINVAL"),
        (WRITE, DF, 0, 1, ALL, "EINVAL"),
        (FLUSH, DF, 0, 0, ALL, "EINVAL"),
        (READ, DF, 0, 1, ALL, None),  # 35
        (READ, DF, 0, 1, ExportFlag.HAS_FLAGS, "EINVAL"),  # 28
        (ZEROES, FAST_ZERO | NO_HOLE | FUA, 0, 1, ALL, None),  # 44
        (ZEROES, NO_HOLE | FUA, 0, MIB, ALL, None),  # 43
        (READ, FUA, 0, 1, ALL, None),  # 40
        (WRITE, FUA, 0, 1, ALL, None),
        (TRIM, FUA, 0, MIB, ALL, None),
        (FLUSH, FUA, 0, 0, ALL, None),
        (READ, 0, 0, 32 * MIB + 1, ALL, "EINVAL"),  # 52
        (WRITE, 0, 0, 32 * MIB + 1, ALL, "EINVAL"),
        (ZEROES, 0, 0, 0, ALL, None),  # 50
    ],
)
def test_refusals(
    kind: int, flags: int, offset: int, length: int, export: ExportFlag, expected: str | None
) -> None:
    """28, 35, 37 to 40, 43, 44, 49 to 52."""
    error = refusal(
        (0, flags, kind, 7, offset, length),
        flags=export,
        size_bytes=MIB,
        grain_bytes=1,
        payload_max=32 * MIB,
    )
    assert (error and error.name) == expected


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (512, 100)])
def test_requests_must_be_in_whole_blocks(offset: int, length: int) -> None:
    got = refusal(
        (0, 0, READ, 7, offset, length),
        flags=ALL,
        size_bytes=MIB,
        grain_bytes=512,
        payload_max=MIB,
    )
    assert got == WireError.EINVAL


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EPERM, 1),
        (errno.EROFS, 1),
        (errno.EIO, 5),
        (errno.ENOMEM, 12),
        (errno.EINVAL, 22),
        (errno.ENOSPC, 28),
        (errno.EDQUOT, 28),
        (errno.EFBIG, 28),
        (errno.EOVERFLOW, 75),
        (errno.ENOTSUP, 95),
        (errno.ESHUTDOWN, 108),
        (errno.EBUSY, 5),
        (None, 5),
        (0, 5),
    ],
)
def test_local_errors_are_mapped_to_wire_errors(number: int | None, expected: int) -> None:
    """54."""
    assert wire_error(number) == expected


@given(
    st.binary(max_size=300)
    | st.lists(
        st.builds(
            lambda kind, offset, length, data: request(kind, offset, length) + data,
            st.integers(0, 65535) | st.integers(0, 8),
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**32 - 1) | st.integers(0, 50),
            st.binary(max_size=60),
        ),
        max_size=5,
    ).map(b"".join),
    st.integers(1, 70),
    st.booleans(),
)
def test_any_bytes_yield_requests_or_protocol_error(
    stream: bytes, piece: int, extended: bool
) -> None:
    with suppress(ProtocolError):
        parse(stream, piece, extended=extended)


@pytest.mark.parametrize("extended", [False, True])
def test_a_small_write_is_parsed_only_once_its_payload_arrives(extended: bool) -> None:
    parser = a_parser(extended=extended)
    form, flags = (extended_request, PAYLOAD_LEN) if extended else (request, 0)
    header = form(WRITE, 0, 4096, flags=flags)
    large = form(WRITE, 0, PAYLOAD_MAX, flags=flags)

    def receive(data: bytes) -> bool:
        parser.room()[: len(data)] = data
        return parser.received(len(data))

    assert not receive(header)
    assert receive(bytes(4096))
    assert [found[2] for found in iter(parser.next_request, None)] == [WRITE]
    assert receive(form(WRITE, 0, 0, flags=flags))
    assert [found[2] for found in iter(parser.next_request, None)] == [WRITE]
    assert receive(form(READ, 0, 4096))
    assert [found[2] for found in iter(parser.next_request, None)] == [READ]
    assert receive(large)  # its payload gets a buffer of its own
