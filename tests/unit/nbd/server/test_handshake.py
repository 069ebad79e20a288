"""Negotiation, byte by byte. Numbers in docstrings are those of docs/nbd.md."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.constants import ExportFlag, OptionReply
from nbd.errors import ProtocolError
from nbd.server.handshake import (
    Ended,
    Event,
    ExportRequest,
    ListRequest,
    Need,
    ServerHandshake,
)
from nbd.server.options import ExportInfo
from tests.unit.nbd.wire import (
    ACK,
    ERR_INVALID,
    ERR_SHUTDOWN,
    ERR_TOO_BIG,
    ERR_UNKNOWN,
    ERR_UNSUP,
    GREETING,
    INFO,
    SERVER,
    info_data,
    option,
    option_replies,
)

FLAGS = b"\0\0\0\3"
EXPORT = ExportInfo("vm", 1 << 20, ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH, "a disk")
EXPORT_BYTES = b"\0\0" + struct.pack(">QH", 1 << 20, 5)
SIZES_BYTES = struct.pack(">HIII", 3, 1, 4096, 32 << 20)


def answer(handshake: ServerHandshake, event: Event) -> None:
    """Answer as a server does that has the export `vm` and lists `naïve` as well."""
    if isinstance(event, ListRequest):
        handshake.answer_list(["vm", "naïve"])
    elif isinstance(event, ExportRequest) and event.name == "vm":
        handshake.answer_export(EXPORT)
    elif isinstance(event, ExportRequest):
        handshake.refuse(OptionReply.ERR_UNKNOWN, "no such export")


def converse(stream: bytes, piece: int = 1 << 20) -> tuple[list[Event], bytes, ServerHandshake]:
    """Feed a stream in pieces; return events, output, and the handshake."""
    handshake = ServerHandshake()
    events: list[Event] = []
    output = b""
    for start in range(0, len(stream), piece):
        handshake.receive(stream[start : start + piece])
        while not handshake.entered and (event := handshake.next_event()) is not Need.DATA:
            events.append(event)
            answer(handshake, event)
            if isinstance(event, Ended):
                break
        output += handshake.data_to_send()
    return events, output, handshake


def replies_to(*options: bytes) -> list[tuple[int, int, bytes]]:
    output = converse(FLAGS + b"".join(options))[1]
    assert output.startswith(GREETING)
    return option_replies(output[len(GREETING) :])


def test_greeting() -> None:
    """1: both magics, FIXED_NEWSTYLE and NO_ZEROES, no other flag."""
    assert ServerHandshake().data_to_send() == GREETING


@pytest.mark.parametrize("flags", [4, 1 << 31, 7])
def test_unknown_client_flags_end_the_connection(flags: int) -> None:
    """2."""
    with pytest.raises(ProtocolError):
        converse(struct.pack(">I", flags))


@pytest.mark.parametrize(("flags", "zeroes"), [(0, 124), (1, 124), (2, 0), (3, 0)])
def test_export_name_answers_10_or_134_bytes(flags: int, zeroes: int) -> None:
    """3."""
    events, output, handshake = converse(struct.pack(">I", flags) + option(1, b"vm"))
    assert events == [ExportRequest("vm", enter=True)]
    assert output == GREETING + struct.pack(">QH", 1 << 20, 5) + bytes(zeroes)
    assert handshake.entered


@pytest.mark.parametrize("name", [b"nope", b"\xff", b"x" * 5000, b"a\0b"])
def test_export_name_can_only_be_refused_by_closing(name: bytes) -> None:
    """4."""
    with pytest.raises(ProtocolError):
        converse(FLAGS + option(1, name))


@pytest.mark.parametrize("number", [0, 4, 5, 12, 2**32 - 1])
def test_unknown_options_are_refused_and_the_stream_stays_in_step(number: int) -> None:
    """5, 24: refused with ERR_UNSUP, data consumed, never ERR_TLS_REQD."""
    replies = replies_to(option(number, b"IHAVEOPT" * 9), option(3))
    assert replies[0][:2] == (number, ERR_UNSUP)
    assert [kind for _, kind, _ in replies[1:]] == [SERVER, SERVER, ACK]


def test_error_text_is_short_utf8() -> None:
    """6: even for a message longer than 4096 bytes, with a NUL."""
    handshake = ServerHandshake()
    handshake.receive(FLAGS + option(7, info_data(b"n" * 4096)))
    event = handshake.next_event()
    assert isinstance(event, ExportRequest)
    handshake.data_to_send()
    handshake.refuse(OptionReply.ERR_UNKNOWN, f"no \0 such ü{'ü' * 4096}")
    ((_, _, text),) = option_replies(handshake.data_to_send())
    assert len(text) <= 4096
    assert "\0" not in text.decode()


def test_abort_is_acknowledged_even_with_data() -> None:
    """7."""
    events, output, _ = converse(FLAGS + option(2, b"bye"))
    assert events == [Ended()]
    assert option_replies(output[18:]) == [(2, ACK, b"")]


def test_list_can_be_repeated() -> None:
    """8."""
    entries = [
        (3, SERVER, b"\0\0\0\2vm"),
        (3, SERVER, b"\0\0\0\6na\xc3\xafve"),
        (3, ACK, b""),
    ]
    assert replies_to(option(3), option(3)) == entries * 2
    assert replies_to(option(3, b"x"))[0][1] == ERR_INVALID


@pytest.mark.parametrize("number", [6, 7])
def test_info_and_go_answer_alike(number: int) -> None:
    """9, 10: EXPORT before ACK, unknown information requests ignored."""
    asked = option(number, info_data(b"vm", 1, 2, 3, 999))
    assert replies_to(asked) == [
        (number, INFO, EXPORT_BYTES),
        (number, INFO, b"\0\1vm"),
        (number, INFO, b"\0\2a disk"),
        (number, INFO, SIZES_BYTES),
        (number, ACK, b""),
    ]
    assert converse(FLAGS + asked)[2].entered == (number == 7)


def test_negotiation_goes_on_after_an_unknown_export() -> None:
    """11."""
    events, output, handshake = converse(
        FLAGS + option(7, info_data(b"nope")) + option(7, info_data(b"vm"))
    )
    assert events == [ExportRequest("nope", enter=True), ExportRequest("vm", enter=True)]
    assert option_replies(output[18:])[0][1] == ERR_UNKNOWN
    assert handshake.entered


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\0\0",
        b"\xff\xff\xff\xff\0\0",
        b"\0\0\0\3vm\0\0",
        info_data(b"vm", 1)[:-1],
        info_data(b"vm", 1) + b"\0",
        info_data(b"\xff\xfe"),
        info_data(b"v\0m"),
    ],
)
@pytest.mark.parametrize("number", [6, 7])
def test_malformed_info_is_refused_and_the_stream_stays_in_step(number: int, data: bytes) -> None:
    """12, 21, and the name length of CVE-2022-26495."""
    replies = replies_to(option(number, data), option(8))
    assert [(kind, len(rest) > 0) for _, kind, rest in replies] == [(ERR_INVALID, True), (ACK, 0)]


@pytest.mark.parametrize(
    ("size", "expected"), [(257, ERR_UNKNOWN), (4096, ERR_UNKNOWN), (4097, ERR_TOO_BIG)]
)
def test_long_names_are_answered(size: int, expected: int) -> None:
    """13, CVE-2022-26496."""
    assert replies_to(option(7, info_data(b"n" * size)))[0][1] == expected


@pytest.mark.parametrize("length", [65537, 2**31, 2**32 - 1])
def test_hostile_option_lengths_end_the_connection(length: int) -> None:
    """14: before any byte of the data was received."""
    with pytest.raises(ProtocolError, match="too long"):
        converse(FLAGS + b"IHAVEOPT" + struct.pack(">II", 7, length))


def test_the_number_of_options_is_bounded() -> None:
    """14."""
    with pytest.raises(ProtocolError, match="too many"):
        converse(FLAGS + option(3) * 1025)


def test_bad_option_magic_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="magic"):
        converse(FLAGS + b"IHAVEOPS" + bytes(8))


def test_structured_reply_takes_no_data() -> None:
    """18."""
    assert replies_to(option(8, b"x"))[0][1] == ERR_INVALID
    assert not converse(FLAGS + option(8, b"x"))[2].structured
    assert converse(FLAGS + option(8))[2].structured


def test_shutting_down_refuses_all_but_abort() -> None:
    """22."""
    handshake = ServerHandshake()
    handshake.data_to_send()
    handshake.shutting_down = True
    handshake.receive(FLAGS + option(3) + option(7, info_data(b"vm")) + option(99) + option(2))
    assert handshake.next_event() == Ended()
    kinds = [kind for _, kind, _ in option_replies(handshake.data_to_send())]
    assert kinds == [ERR_SHUTDOWN] * 3 + [ACK]


def test_bytes_behind_go_are_kept() -> None:
    assert converse(FLAGS + option(7, info_data(b"vm")) + b"early")[2].trailing() == b"early"


WHOLE = (
    FLAGS
    + option(8)
    + option(3)
    + option(77, b"data")
    + option(6, info_data(b"vm", 3))
    + option(7, info_data(b"vm"))
)


@pytest.mark.parametrize("piece", [*range(1, 25), len(WHOLE)])
def test_parsing_ignores_packet_boundaries(piece: int) -> None:
    events, output, _ = converse(WHOLE, piece)
    assert (events, output) == converse(WHOLE)[:2]


plausible_options = st.builds(
    lambda number, data, cut: option(number, data)[: None if cut > 9 else -cut or None],
    st.integers(0, 12) | st.integers(0, 2**32 - 1),
    st.binary(max_size=40) | st.builds(info_data, st.binary(max_size=9), st.integers(0, 9)),
    st.integers(0, 100),
)


@given(
    st.binary(max_size=200)
    | st.lists(plausible_options, max_size=6).map(lambda options: FLAGS + b"".join(options)),
    st.integers(1, 60),
)
def test_any_bytes_yield_events_or_protocol_error(stream: bytes, piece: int) -> None:
    """12: and the replies are well-formed."""
    try:
        _, output, handshake = converse(stream, piece)
    except ProtocolError:
        return
    if not handshake.entered:
        option_replies(output[len(GREETING) :])
