"""Right replies: golden bytes, and any split of the stream. Numbers in docstrings are those of
docs/nbd.md."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdev.device import EXTENTS_MAX
from nbd.client.negotiation import Mode
from nbd.client.operation import Operation
from nbd.client.replies import RECEIVE_BYTES, STATUS_EXTENTS_MAX
from nbd.errors import ProtocolError
from tests.unit.nbd.client.reply_wire import (
    CHUNKED,
    DATA,
    EIO,
    ERROR,
    ERROR_OFFSET,
    LENGTH,
    MODES,
    NONE,
    OFFSET,
    Wire,
    a_read,
    pattern,
    simple,
)
from tests.unit.nbd.client.scripted import FLUSH, READ, STATUS, WRITE
from tests.unit.nbd.client.scripted import status as wire_status


@pytest.mark.parametrize("mode", MODES)
def test_golden_bytes(mode: Mode) -> None:
    wire = Wire(mode, Operation(READ, 4096, 3))
    stream = {
        Mode.SIMPLE: "67446698 00000000 0000000000000001 616263",
        Mode.STRUCTURED: "668e33ef 0001 0001 0000000000000001 0000000b 0000000000001000 616263",
        Mode.EXTENDED: "6e8a278c 0001 0001 0000000000000001 0000000000001000 000000000000000b"
        "0000000000001000 616263",
    }[mode]
    (done,) = wire.feed(bytes.fromhex(stream))
    assert bytes(done.data or b"") == b"abc"
    assert not wire.pending


@pytest.mark.parametrize("mode", MODES)
def test_replies_come_in_any_order(mode: Mode) -> None:
    wire = Wire(mode, *(Operation(WRITE, 0, 8) for _ in range(5)))
    order = [3, 1, 5, 2, 4]
    if mode is Mode.EXTENDED:
        stream = b"".join(wire.chunk(NONE, cookie=cookie) for cookie in order)
    else:
        stream = b"".join(simple(cookie) for cookie in order)
    assert [done.cookie for done in wire.feed(stream)] == order


@pytest.mark.parametrize("mode", CHUNKED)
def test_chunks_in_any_order_with_holes(mode: Mode) -> None:
    wire = Wire(mode, a_read())
    data = pattern(LENGTH)
    stream = (
        wire.data(OFFSET + 600, data[600:])
        + wire.hole(OFFSET + 500, 100)
        + wire.data(OFFSET + 200, data[200:500])
        + wire.data(OFFSET, data[:200])
        + wire.chunk(NONE)
    )
    (done,) = wire.feed(stream)
    assert bytes(done.data or b"") == data[:500] + bytes(100) + data[600:]


@pytest.mark.parametrize("mode", CHUNKED)
def test_the_last_chunk_may_have_content(mode: Mode) -> None:
    wire = Wire(mode, a_read(), a_read())
    assert len(wire.feed(wire.data(OFFSET, bytes(LENGTH), flags=1))) == 1
    wire = Wire(mode, a_read())
    assert len(wire.feed(wire.hole(OFFSET, LENGTH, flags=1))) == 1


@pytest.mark.parametrize("mode", MODES)
def test_error_replies_give_number_and_text(mode: Mode) -> None:
    wire = Wire(mode, a_read(), Operation(FLUSH))
    if mode is Mode.SIMPLE:
        stream = simple(1, EIO) + simple(2, 28)
    else:
        stream = (
            wire.data(OFFSET, bytes(10))
            + wire.chunk(ERROR_OFFSET, struct.pack(">IH3sQ", EIO, 3, b"bad", OFFSET + 5), flags=0)
            + wire.chunk(ERROR_OFFSET, struct.pack(">IHQ", 1, 0, OFFSET + 999), flags=0)
            + wire.chunk(NONE)
            + (simple(2, 28) if mode is Mode.STRUCTURED else b"")
        )
        if mode is Mode.EXTENDED:
            stream += wire.chunk(ERROR, struct.pack(">IH", 28, 0), cookie=2)
    first, second = wire.feed(stream)
    assert (first.error, second.error) == (EIO, 28)
    assert first.message == ("" if mode is Mode.SIMPLE else "bad")


@pytest.mark.parametrize("mode", CHUNKED)
def test_unknown_error_types_are_errors(mode: Mode) -> None:
    wire = Wire(mode, a_read())
    payload = struct.pack(">IH", 75, 4) + b"text" + b"and more fields"
    (done,) = wire.feed(wire.chunk(2**15 + 77, payload))
    assert (done.error, done.message) == (75, "text")


@pytest.mark.parametrize("mode", CHUNKED)
def test_block_status(mode: Mode) -> None:
    """47: the last extent may pass the request."""
    wire = Wire(mode, Operation(STATUS, 0, 100))
    (done,) = wire.feed(wire.status([(50, 0), (49, 3), (0xFFFFFFFF, 1)]))
    assert done.runs == {"base:allocation": [(50, 0), (49, 3), (0xFFFFFFFF, 1)]}


def test_block_status_of_64_bits() -> None:
    wire = Wire(Mode.EXTENDED, Operation(STATUS, 0, 1 << 40))
    (done,) = wire.feed(wire.status([(1 << 33, 0), ((1 << 64) - 1, 3)]))
    assert done.runs["base:allocation"] == [(1 << 33, 0), ((1 << 64) - 1, 3)]


@pytest.mark.parametrize("mode", CHUNKED)
def test_a_million_extents_are_read_and_cut(mode: Mode) -> None:
    count = STATUS_EXTENTS_MAX
    wire = Wire(mode, Operation(STATUS, 0, count))
    (done,) = wire.feed(wire.status([(1, number % 2) for number in range(count)]), 100_000)
    assert len(done.runs["base:allocation"]) == EXTENTS_MAX


@pytest.mark.parametrize("mode", CHUNKED)
def test_a_long_status_between_other_replies(mode: Mode) -> None:
    count = RECEIVE_BYTES // 4
    wire = Wire(mode, Operation(STATUS, 0, count), a_read(), Operation(STATUS, 0, count))
    runs = [(1, 0)] * count
    stream = wire.status(runs)
    read = wire.chunk(DATA, struct.pack(">Q", OFFSET) + pattern(LENGTH), cookie=2)
    kind, payload = wire_status(mode.value, 5, runs)
    stream += read + wire.chunk(kind, payload, cookie=3)
    for piece in (1 << 30, 1000, 65535):
        again = Wire(mode, Operation(STATUS, 0, count), a_read(), Operation(STATUS, 0, count))
        done = again.feed(stream, piece)
        assert [one.cookie for one in done] == [1, 2, 3]
        assert bytes(done[1].data or b"") == pattern(LENGTH)


def test_large_data_is_received_straight_into_its_buffer() -> None:
    wire = Wire(Mode.SIMPLE, Operation(READ, 0, 1 << 20))
    data = pattern(1 << 20)
    stream = simple(1, 0, data)
    room = wire.parser.room()
    room[:100] = stream[:100]
    wire.parser.received(100)
    assert list(wire.parser.finished()) == []
    assert len(wire.parser.room()) == len(stream) - 100
    (done,) = wire.feed(stream[100:])
    assert done.data == data


def test_data_goes_to_the_buffer_of_the_caller() -> None:
    place = memoryview(bytearray(10))
    operation = Operation(READ, 0, 10, into=place)
    Wire(Mode.SIMPLE, operation).feed(simple(1, 0, b"0123456789"))
    assert bytes(place) == b"0123456789"


# Any split, any bytes


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 3000), max_size=30), seed=st.integers(0, 5))
def test_any_split_gives_the_same(mode: Mode, cuts: list[int], seed: int) -> None:
    def wire() -> Wire:
        return Wire(
            mode, a_read(), Operation(WRITE, 0, 4), Operation(STATUS, 0, 900), Operation(FLUSH)
        )

    one = wire()
    data = pattern(LENGTH)
    if mode is Mode.SIMPLE:
        stream = simple(2) + simple(1, 0, data) + simple(3, 22) + simple(4)
    else:
        last = simple(4, EIO) if mode is Mode.STRUCTURED else one.chunk(NONE, cookie=4)
        kind, payload = wire_status(mode.value, 5, [(10, 1)] * 80)
        stream = (
            one.data(OFFSET + 300, data[300:])
            + one.chunk(ERROR, struct.pack(">IH", 28, 2) + b"no", cookie=2)
            + one.hole(OFFSET, 300 - seed * 20)
            + one.chunk(kind, payload, cookie=3)
            + (one.data(OFFSET + 300 - seed * 20, bytes(seed * 20)) if seed else b"")
            + one.chunk(NONE)
            + last
        )
    expected = [(x.cookie, x.error, x.data, x.runs) for x in one.feed(stream)]
    other = wire()
    got = []
    at = 0
    for cut in [*cuts, len(stream)]:
        got += [(x.cookie, x.error, x.data, x.runs) for x in other.feed(stream[at : at + cut])]
        at += cut
    assert got == expected
    assert len(got) == 4
    assert other.parser.is_between_replies()


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_give_replies_or_a_protocol_error(mode: Mode, data: st.DataObject) -> None:
    wire = Wire(mode, a_read(), Operation(STATUS, 0, 100), Operation(FLUSH))
    magics = [b"\x67\x44\x66\x98", b"\x66\x8e\x33\xef", b"\x6e\x8a\x27\x8c"]
    number = st.sampled_from([0, 1, 2, 3, 5, 6, 8, 12, 2**15 + 1, 2**15 + 2, 4096, 2**32 - 1])
    word = number.map(lambda n: (n & 0xFFFF).to_bytes(2))
    field = st.one_of(
        st.sampled_from(magics),
        word,
        number.map(lambda n: n.to_bytes(4)),
        number.map(lambda n: n.to_bytes(8)),
        st.binary(max_size=20),
    )
    head = data.draw(
        st.one_of(
            st.just(b""),
            st.tuples(
                st.sampled_from(magics), word, word, st.sampled_from([1, 2, 3]), number, number
            ).map(lambda t: t[0] + t[1] + t[2] + t[3].to_bytes(8) + t[4].to_bytes(4)),
        )
    )
    stream = head + b"".join(data.draw(st.lists(field, max_size=20)))
    with contextlib.suppress(ProtocolError):
        wire.feed(stream, data.draw(st.integers(1, 50)))
