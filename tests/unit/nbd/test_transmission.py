"""Requests and replies, byte by byte. Numbers in docstrings are those of the checklist."""

import errno
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.constants import ExportFlag, WireError, wire_error
from nbd.errors import ProtocolError
from nbd.transmission import (
    RECEIVE_BYTES,
    RequestParser,
    data_chunk,
    error_chunk,
    none_chunk,
    refusal,
    simple_reply,
)
from tests.unit.nbd.wire import (
    CACHE,
    DF,
    DISC,
    FAST_ZERO,
    FLUSH,
    FUA,
    MIB,
    NO_HOLE,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    WRITE,
    ZEROES,
    request,
    write,
)

Parsed = list[tuple[int, int, int, int, int, bytes]]
PAYLOAD_MAX = 1 << 20


def parse(stream: bytes, piece: int = 1 << 30, early: int = 0) -> Parsed:
    """Feed a stream in pieces; return each request with its payload."""
    parser = RequestParser(payload_bytes_max=PAYLOAD_MAX, early=stream[:early])
    parsed: Parsed = []
    fed = early
    while True:
        for found in parser.requests():
            payload = bytes(parser.payload) if found[2] == WRITE else b""
            parsed.append((*found[1:], payload))
        if fed == len(stream):
            return parsed
        room = parser.room()
        count = min(len(room), piece, len(stream) - fed)
        assert count
        room[:count] = stream[fed : fed + count]
        parser.received(count)
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
    """Payloads that fit the buffer, straddle its end, or get their own."""
    rng = random.Random(piece)
    sizes = [rng.choice([1, 4096, 60_000, 65_536, 65_537, 300_000, MIB]) for _ in range(60)]
    payloads = [rng.randbytes(size) for size in sizes]
    stream = b"".join(write(n, data, cookie=n) for n, data in enumerate(payloads))
    assert [parsed[-1] for parsed in parse(stream, piece)] == payloads


@pytest.mark.parametrize("piece", [1000, RECEIVE_BYTES])
def test_an_oversized_payload_is_thrown_away_in_step(piece: int) -> None:
    """39, 52: nothing of that size is allocated."""
    stream = write(0, b"x" * (PAYLOAD_MAX + 1), cookie=1) + request(READ, 0, 9, cookie=2)
    assert parse(stream, piece) == [
        (0, WRITE, 1, 0, PAYLOAD_MAX + 1, b""),
        (0, READ, 2, 0, 9, b""),
    ]


@pytest.mark.parametrize("size", [10, 70_000])
def test_a_kept_payload_outlives_the_next(size: int) -> None:
    parser = RequestParser(payload_bytes_max=PAYLOAD_MAX)
    kept = []
    for letter in (b"a", b"b", b"c"):
        stream = write(0, letter * size)
        while stream:
            room = parser.room()
            count = min(len(room), len(stream), 5000)
            room[:count] = stream[:count]
            stream = stream[count:]
            parser.received(count)
            kept += [parser.keep_payload() for _ in parser.requests()]
    assert [bytes(payload) for payload in kept] == [b"a" * size, b"b" * size, b"c" * size]


def test_bad_magic_ends_the_connection() -> None:
    """30."""
    with pytest.raises(ProtocolError, match="magic"):
        parse(MIXED[1:])


def test_replies() -> None:
    """29, 32, 33, 36: golden bytes."""
    assert simple_reply(0x0102030405060708, 5).hex() == "67446698000000050102030405060708"
    assert data_chunk(7, 4096, 16).hex() == (
        "668e33ef000100010000000000000007000000180000000000001000"
    )
    assert none_chunk(7).hex() == "668e33ef00010000000000000000000700000000"
    assert error_chunk(7, 22, "no").hex() == (
        "668e33ef000180010000000000000007000000080000001600026e6f"
    )
    assert len(error_chunk(7, 22, "ü" * 9999)) <= 20 + 6 + 1024


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
        (CACHE, 0, 0, 1, ALL, "EINVAL"),  # 39
        (STATUS, 0, 0, 1, ALL, "EINVAL"),  # 49
        (99, 0, 0, 1, ALL, "EINVAL"),
        (READ, 1 << 15, 0, 1, ALL, "EINVAL"),
        (READ, NO_HOLE, 0, 1, ALL, "EINVAL"),
        (READ, REQ_ONE, 0, 1, ALL, "EINVAL"),
        (WRITE, DF, 0, 1, ALL, "EINVAL"),
        (FLUSH, DF, 0, 0, ALL, "EINVAL"),
        (READ, DF, 0, 1, ALL, None),  # 35
        (READ, DF, 0, 1, ExportFlag.HAS_FLAGS, "EINVAL"),  # 28
        (ZEROES, FAST_ZERO, 0, 1, ALL, "EINVAL"),  # 44: not advertised
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
def test_requests_must_fit_the_grain(offset: int, length: int) -> None:
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
def test_errors_are_mapped_to_what_may_be_sent(number: int | None, expected: int) -> None:
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
)
def test_any_bytes_yield_requests_or_protocol_error(stream: bytes, piece: int) -> None:
    with suppress(ProtocolError):
        parse(stream, piece)
