"""Replies that a server must not send. Numbers in docstrings are those of docs/nbd.md."""

import contextlib
import random
import struct
import tracemalloc

import pytest

from nbd.client.negotiation import Mode
from nbd.client.operation import FRAGMENTS_MAX, Coverage, Operation
from nbd.errors import ProtocolError
from tests.unit.nbd.client.reply_wire import (
    CHUNKED,
    DATA,
    EIO,
    ERROR,
    ERROR_OFFSET,
    HOLE,
    LENGTH,
    MODES,
    NONE,
    OFFSET,
    Wire,
    a_read,
    simple,
)
from tests.unit.nbd.client.scripted import FLUSH, READ, STATUS, WRITE, Request
from tests.unit.nbd.client.scripted import chunk as wire_chunk
from tests.unit.nbd.client.scripted import status as wire_status


def wrong_everywhere(wire: Wire) -> list[bytes]:
    return [
        bytes(40),
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(20),
        wire.chunk(NONE, cookie=99),
        wire.chunk(NONE, flags=3),
        wire.chunk(NONE, flags=0x8001),
        wire.chunk(NONE, flags=0),  # 32: not the last
        wire.chunk(NONE, b"x"),
        wire.chunk(NONE),  # 32: success without data
        wire.chunk(3, b"x"),
        wire.chunk(7),
        wire.chunk(77, bytes(10)),
        wire.data(OFFSET, b"", flags=1),  # 33
        wire.chunk(DATA, b"short"),
        wire.data(OFFSET - 1, bytes(10)),
        wire.data(OFFSET, bytes(LENGTH + 1)),
        wire.data(OFFSET + LENGTH, bytes(1)),
        wire.data(2**64 - 1, bytes(10)),
        wire.data(OFFSET, bytes(LENGTH - 1)) + wire.chunk(NONE),  # short
        wire.data(OFFSET, bytes(LENGTH - 1), flags=1),
        wire.data(OFFSET, bytes(500)) + wire.data(OFFSET + 499, bytes(501)),  # overlap
        wire.data(OFFSET, bytes(LENGTH)) + wire.data(OFFSET, bytes(LENGTH)),
        wire.data(OFFSET, bytes(LENGTH)) + wire.data(OFFSET + 1, bytes(1)),
        wire.data(OFFSET, bytes(500)) + wire.data(OFFSET, bytes(LENGTH)),
        wire.data(OFFSET, bytes(500)) + wire.hole(OFFSET + 400, 600),
        wire.hole(OFFSET, LENGTH) + wire.hole(OFFSET, 1),
        wire.hole(OFFSET, 0),
        wire.hole(OFFSET, 2**32 - 1),
        wire.hole(OFFSET - 10, 10),
        wire.hole(2**64 - 10, 20),
        wire.chunk(HOLE, bytes(11)),
        wire.chunk(HOLE, bytes(13)),
        wire.chunk(5, struct.pack(">III", 5, 1, 0)),  # a status for a read
        wire.chunk(6, struct.pack(">IIQQ", 5, 1, 1, 0)),
        wire.chunk(ERROR, b""),
        wire.chunk(ERROR, struct.pack(">IH", 0, 0)),  # without a number
        wire.chunk(ERROR, struct.pack(">IH", EIO, 5) + b"1234"),
        wire.chunk(ERROR, struct.pack(">IH", EIO, 4097) + bytes(4097)),
        wire.chunk(ERROR, struct.pack(">IH", EIO, 65535) + bytes(1 << 20)),
        wire.chunk(ERROR_OFFSET, struct.pack(">IH", EIO, 0)),
        wire.chunk(ERROR_OFFSET, struct.pack(">IHQ", EIO, 1, OFFSET)),
        wire.chunk(ERROR_OFFSET, struct.pack(">IHQ", EIO, 0, OFFSET + LENGTH)),
        wire.chunk(ERROR_OFFSET, struct.pack(">IHQ", EIO, 0, OFFSET - 1)),
    ]


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("number", range(42))
def test_wrong_replies_to_a_read_are_refused(mode: Mode, number: int) -> None:
    """31, 32, 33, 36."""
    cases = wrong_everywhere(Wire(mode, a_read()))
    assert len(cases) == 42
    for piece in (1 << 30, 1):
        wire = Wire(mode, a_read())
        with pytest.raises(ProtocolError):
            wire.feed(cases[number], piece)
        assert wire.pending  # the request never counts as answered


def test_a_simple_reply_to_a_structured_read_is_refused() -> None:
    """31."""
    for error in (0, EIO):
        with pytest.raises(ProtocolError, match="simple reply"):
            Wire(Mode.STRUCTURED, a_read()).feed(simple(1, error, bytes(LENGTH)))


def test_forms_of_replies_that_were_not_agreed_are_refused() -> None:
    """31, 57."""
    structured = Wire(Mode.STRUCTURED, a_read()).data(OFFSET, bytes(LENGTH), flags=1)
    extended = Wire(Mode.EXTENDED, a_read()).data(OFFSET, bytes(LENGTH), flags=1)
    for mode, stream in (
        (Mode.SIMPLE, structured),
        (Mode.SIMPLE, extended),
        (Mode.STRUCTURED, extended),
        (Mode.EXTENDED, structured),
        (Mode.EXTENDED, simple(1) + bytes(20)),
    ):
        with pytest.raises(ProtocolError, match="magic"):
            Wire(mode, a_read()).feed(stream)


def test_extended_replies_must_echo_the_offset() -> None:
    """57."""
    wire = Wire(Mode.EXTENDED, a_read())
    reply = wire_chunk("extended", Request(0, 0, 1, OFFSET + 1, 0), NONE)
    with pytest.raises(ProtocolError, match="another offset"):
        wire.feed(reply)


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("kind", [WRITE, FLUSH])
def test_content_for_a_request_without_content_is_refused(mode: Mode, kind: int) -> None:
    for number in range(4):
        wire = Wire(mode, Operation(kind, OFFSET, LENGTH))
        stream = [
            wire.data(OFFSET, bytes(10)),
            wire.hole(OFFSET, 10),
            wire.status([(LENGTH, 0)]),
            wire.chunk(ERROR, struct.pack(">IH", 0, 0)),
        ][number]
        with pytest.raises(ProtocolError):
            wire.feed(stream)


@pytest.mark.parametrize("mode", MODES)
def test_a_second_reply_is_refused(mode: Mode) -> None:
    wire = Wire(mode, Operation(FLUSH), a_read())
    reply = wire.chunk(NONE) if mode is Mode.EXTENDED else simple(1)
    assert len(wire.feed(reply)) == 1
    with pytest.raises(ProtocolError, match="no request"):
        wire.feed(reply)


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("number", range(12))
def test_wrong_block_status_is_refused(mode: Mode, number: int) -> None:
    """47, 60: contexts, extents, counts."""
    wire = Wire(mode, Operation(STATUS, 0, 100))
    kind, good = wire_status(mode.value, 5, [(100, 0)])
    other = 11 - kind
    cases = [
        wire.chunk(NONE),  # the context is missing
        wire.status([(100, 0)], number=6),
        wire.status([(100, 0)], flags=0) * 2,  # the same context again
        wire.status([(0, 0)]),
        wire.status([(50, 0), (0, 3), (50, 0)]),
        wire.status([(100, 0), (1, 0)]),  # goes on behind the request
        wire.status([(0xFFFFFFFF, 0), (0xFFFFFFFF, 0)]),
        wire.chunk(kind, good[:-1]),
        wire.chunk(kind, good[: 8 if kind == 6 else 4]),
        wire.chunk(kind, b""),
        wire.chunk(other, good),
        wire.chunk(kind, good + (b"\0" * 16 if kind == 6 else b"\0" * 3)),
    ]
    with pytest.raises(ProtocolError):
        wire.feed(cases[number])


def test_a_simple_success_is_no_block_status() -> None:
    with pytest.raises(ProtocolError, match="leaves out"):
        Wire(Mode.STRUCTURED, Operation(STATUS, 0, 100)).feed(simple(1))
    (done,) = Wire(Mode.STRUCTURED, Operation(STATUS, 0, 100)).feed(simple(1, 22))
    assert done.error == 22


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("kind", [NONE, DATA, HOLE, 5, 6, ERROR, ERROR_OFFSET, 2**15 + 9])
def test_no_memory_is_allocated_for_the_length_that_a_header_claims(mode: Mode, kind: int) -> None:
    """52."""
    for command in (READ, STATUS):
        for claimed in (2**32 - 1, 2**31, 16 << 20):
            wire = Wire(mode, Operation(command, OFFSET, LENGTH))
            request = Request(0, 0, 1, OFFSET, 0)
            head = wire_chunk(mode.value, request, kind, b"")
            size = 8 if mode is Mode.EXTENDED else 4
            stream = head[:-size] + claimed.to_bytes(size) + struct.pack(">QQ", OFFSET, 0)
            tracemalloc.start()
            with contextlib.suppress(ProtocolError):
                wire.feed(stream)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 1 << 20


# Coverage


def test_coverage_is_complete_after_all_parts_in_any_order() -> None:
    coin = random.Random(5)
    for _ in range(50):
        cuts = sorted(coin.sample(range(1, 1000), 30))
        pieces = list(zip([0, *cuts], [*cuts, 1000], strict=True))
        coin.shuffle(pieces)
        coverage = Coverage()
        for start, end in pieces:
            assert not coverage.is_all_of(0, 1000)
            coverage.add(start, end)
            with pytest.raises(ProtocolError):
                coverage.add(start, end)
        assert coverage.is_all_of(0, 1000)


def test_a_reply_in_absurdly_many_pieces_is_refused() -> None:
    coverage = Coverage()
    for number in range(FRAGMENTS_MAX):
        coverage.add(2 * number, 2 * number + 1)
    with pytest.raises(ProtocolError, match="pieces"):
        coverage.add(4 * FRAGMENTS_MAX, 4 * FRAGMENTS_MAX + 1)
