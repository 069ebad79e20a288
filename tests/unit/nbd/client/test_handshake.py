"""Negotiation without sockets: bytes of a server in, answers and decisions out."""

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd.client.handshake import ANSWER_REPLIES_MAX, REPLY_BYTES_MAX, Answer, ClientHandshake
from nbd.client.negotiation import (
    Agreement,
    Mode,
    RemoteExport,
    enter,
    inspect,
    list_exports,
)
from nbd.constants import ExportFlag, Option, OptionReply
from nbd.errors import (
    NbdError,
    ProtocolError,
    RefusedError,
    TlsError,
    UnknownExportError,
)
from tests.unit.nbd.wire import ACK, ERR_UNSUP, GREETING, option

GIB = 1 << 30
INFO, META, SERVER = 3, 4, 2


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


def greeted(flags: bytes = b"\x00\x03") -> ClientHandshake:
    handshake = ClientHandshake()
    handshake.receive(GREETING[:16] + flags)
    assert handshake.greeted()
    handshake.data_to_send()
    return handshake


# Bytes


@pytest.mark.parametrize("piece", [1, 7, 18, 100])
def test_a_negotiation_is_parsed_in_pieces_of_any_size(piece: int) -> None:
    handshake = ClientHandshake()
    for start in range(0, 18, piece):
        assert not handshake.greeted()
        handshake.receive(GREETING[start : start + piece])
    assert handshake.greeted()
    assert handshake.fixed
    assert handshake.data_to_send() == b"\0\0\0\3"
    handshake.ask(Option.LIST)
    assert handshake.data_to_send() == option(3)
    stream = reply(3, SERVER, b"\0\0\0\1a") + reply(3, SERVER, b"\0\0\0\0") + reply(3, ACK)
    for start in range(0, len(stream), piece):
        assert handshake.answer() is None
        handshake.receive(stream[start : start + piece])
    answer = handshake.answer()
    assert answer == Answer(((SERVER, b"\0\0\0\1a"), (SERVER, b"\0\0\0\0")), ACK)
    assert handshake.trailing() == b""


@pytest.mark.parametrize(("flags", "zeroes"), [(b"\0\3", 0), (b"\0\1", 124)])
def test_the_answer_to_export_name_is_parsed(flags: bytes, zeroes: int) -> None:
    handshake = greeted(flags)
    handshake.ask(Option.EXPORT_NAME, b"disk")
    assert handshake.data_to_send() == option(1, b"disk")
    handshake.receive(struct.pack(">QH", 1234, 1) + bytes(zeroes))
    assert handshake.export_answer() == (1234, 1)
    assert handshake.trailing() == b""


def test_flags_of_newer_protocols_are_not_agreed_to() -> None:
    handshake = ClientHandshake()
    handshake.receive(GREETING[:16] + b"\xff\xff")
    assert handshake.greeted()
    assert handshake.data_to_send() == b"\0\0\0\3"


@pytest.mark.parametrize(
    ("greeting", "about"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an NBD server"),
        (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53" + bytes(10), "oldstyle"),
        (b"NBDMAGIC" + b"whatever" + bytes(2), "greeting"),
    ],
)
def test_servers_of_other_protocols_are_named(greeting: bytes, about: str) -> None:
    handshake = ClientHandshake()
    handshake.receive(greeting)
    with pytest.raises(ProtocolError, match=about):
        handshake.greeted()


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage!" * 3,
        reply(8, ACK),  # to another option
        reply(7, ACK, b"x"),
        reply(7, 2**31 + 1, bytes(REPLY_BYTES_MAX + 1))[:40],  # before the data has arrived
        struct.pack(">QIII", 0x3E889045565A9, 7, 3, 0xFFFFFFFF),
        reply(7, 3) * (ANSWER_REPLIES_MAX + 1),
        reply(7, 3, bytes(60000)) * 300,
    ],
)
def test_wrong_answers_end_the_connection(answer: bytes) -> None:
    handshake = greeted()
    handshake.ask(Option.GO)
    handshake.receive(answer)
    with pytest.raises(ProtocolError):
        handshake.answer()


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_an_answer_or_a_clear_error(data: bytes, honest: bool) -> None:
    handshake = ClientHandshake()
    with contextlib.suppress(ProtocolError):
        handshake.receive((GREETING if honest else b"") + data)
        if handshake.greeted():
            handshake.ask(Option.GO)
            handshake.receive(data)
            handshake.answer()


# Decisions


class Talk:
    """Answers options from a table; other options are unknown."""

    fixed = True

    def __init__(self, answers: dict[int, Answer | Callable[[bytes], Answer]]) -> None:
        self.answers = answers
        self.asked: list[tuple[int, bytes]] = []

    async def ask(self, option: Option, data: bytes = b"") -> Answer:
        self.asked.append((option, data))
        answer = self.answers.get(option, Answer((), ERR_UNSUP))
        return answer if isinstance(answer, Answer) else answer(data)

    async def ask_export_name(self, name: bytes) -> tuple[int, int]:
        self.asked.append((1, name))
        return GIB, 5


def go(
    size: int = GIB,
    flags: int = 5,
    sizes: tuple[int, int, int] | None = None,
    *more: tuple[int, bytes],
) -> Answer:
    replies = [(INFO, struct.pack(">HQH", 0, size, flags))]
    if sizes is not None:
        replies.append((INFO, struct.pack(">HIII", 3, *sizes)))
    return Answer((*replies, *more), ACK)


YES = Answer((), ACK)


async def entered(answers: dict[int, Answer | Callable[[bytes], Answer]]) -> Agreement:
    return await enter(Talk(answers), "disk", extended=True, contexts=["base:allocation"])


async def test_a_new_server_gives_extended_headers_contexts_and_descriptions() -> None:
    contexts = Answer(((META, b"\0\0\0\7base:allocation"),), ACK)
    description = (INFO, b"\0\2a disk")
    talk = Talk({11: YES, 10: contexts, 7: go(GIB, 0x1FFF, (512, 4096, 1 << 20), description)})
    agreement = await enter(talk, "dísk", extended=True, contexts=["base:allocation"])
    assert agreement.mode is Mode.EXTENDED
    assert agreement.contexts == {7: "base:allocation"}
    export = agreement.export
    assert (export.name, export.description) == ("dísk", "a disk")
    assert (export.block_bytes, export.payload_bytes_max) == (512, 1 << 20)
    assert export.flags == sum(ExportFlag)  # a bit unknown to us is left out
    name = "dísk".encode()
    assert talk.asked == [
        (11, b""),
        (10, b"\0\0\0\5" + name + b"\0\0\0\1\0\0\0\x0fbase:allocation"),
        (7, b"\0\0\0\5" + name + b"\0\3\0\1\0\2\0\3"),
    ]


async def test_the_client_falls_back_step_by_step() -> None:
    agreement = await entered({8: YES, 7: go()})
    assert agreement.mode is Mode.STRUCTURED
    assert agreement.contexts == {}
    assert agreement.export.payload_bytes_max == 32 << 20
    agreement = await entered({7: go()})
    assert agreement.mode is Mode.SIMPLE
    talk = Talk({8: YES})
    agreement = await enter(talk, "disk", extended=True, contexts=["base:allocation"])
    assert agreement.export == RemoteExport("disk", GIB, ExportFlag(5))
    assert talk.asked[-1] == (1, b"disk")
    talk = Talk({})
    talk.fixed = False
    agreement = await enter(talk, "disk", extended=True, contexts=["base:allocation"])
    assert talk.asked == [(1, b"disk")]
    assert agreement.mode is Mode.SIMPLE


async def test_extended_headers_are_not_asked_for_when_not_wanted() -> None:
    talk = Talk({11: YES, 8: YES, 7: go()})
    assert (await enter(talk, "", extended=False)).mode is Mode.STRUCTURED
    assert [number for number, _ in talk.asked] == [8, 7]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (2**31 + 2, RefusedError),
        (2**31 + 5, TlsError),
        (2**31 + 6, UnknownExportError),
        (2**31 + 7, RefusedError),
        (2**31 + 99, RefusedError),
    ],
)
async def test_refusals_raise_the_error_of_their_code(code: int, error: type[NbdError]) -> None:
    with pytest.raises(error):
        await entered({7: Answer((), code, "because")})


async def test_a_server_that_demands_tls_is_recognized_at_its_first_answer() -> None:
    for answers in ({11: Answer((), 2**31 + 5)}, {8: Answer((), 2**31 + 5)}):
        with pytest.raises(TlsError, match="nbds"):
            await entered(dict(answers))


async def test_after_extended_headers_export_name_is_never_used() -> None:
    with pytest.raises(RefusedError):
        await entered({11: YES})


@pytest.mark.parametrize(
    "answer",
    [
        go(1 << 63),
        go(2**64 - 1),
        go(flags=0),
        go(flags=4),
        go(sizes=(0, 4096, 1 << 20)),
        go(sizes=(3, 4096, 1 << 20)),
        go(sizes=(1 << 17, 1 << 17, 1 << 20)),
        go(sizes=(512, 4096, 256)),
        go(sizes=(512, 4096, 1024)),
        Answer((), ACK),
        Answer(((INFO, b"\0\0short"),), ACK),
        Answer(((INFO, b"\0"),), ACK),
        Answer(((META, b"\0\0\0\0x"),), ACK),
        go(GIB, 5, None, (INFO, b"\0\1" + bytes(4))),
        go(GIB, 5, None, (INFO, b"\0\1\xff\xfe")),
        go(GIB, 5, None, (INFO, b"\0\2" + b"x" * 4097)),
        go(GIB, 5, None, (INFO, b"\0\3short")),
    ],
)
async def test_impossible_export_information_is_refused(answer: Answer) -> None:
    with pytest.raises(ProtocolError):
        await entered({8: YES, 7: answer})


async def test_information_of_newer_protocols_is_ignored() -> None:
    agreement = await entered({7: go(GIB, 5, None, (INFO, b"\0\x63whatever"))})
    assert agreement.export.size_bytes == GIB


@pytest.mark.parametrize(
    "replies",
    [
        [(META, b"\0\0\0\1a:b"), (META, b"\0\0\0\1c:d")],
        [(META, b"\0\0\0\1a:b"), (META, b"\0\0\0\2a:b")],
        [(META, b"\0\0\0\1")],
        [(INFO, b"\0\0\0\1a:b")],
        [(META, number.to_bytes(4) + b"a:%d" % number) for number in range(300)],
    ],
)
async def test_wrong_contexts_are_refused(replies: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ProtocolError):
        await entered({8: YES, 10: Answer(tuple(replies), ACK), 7: go()})


async def contexts_of(talk: Talk) -> tuple[str, ...]:
    about = await inspect(talk, "a", contexts=True)
    assert about is not None
    return about.contexts


async def test_listing_and_inspecting() -> None:
    names = ((SERVER, b"\0\0\0\1a"), (SERVER, b"\0\0\0\0and a description"))
    talk = Talk({3: Answer(names, ACK)})
    assert await list_exports(talk) == ["a", ""]
    contexts = ((META, b"\0\0\0\0x:y"), (META, b"\0\0\0\0x:z"))  # numbers in a list have no meaning
    talk = Talk({6: go(), 9: Answer(contexts, ACK)})
    assert await contexts_of(talk) == ("x:y", "x:z")
    assert await contexts_of(Talk({6: go()})) == ()
    many = tuple((META, bytes(4) + b"qemu:dirty-bitmap:%d" % number) for number in range(2000))
    talk = Talk({6: go(), 9: Answer(many, ACK)})
    assert len(await contexts_of(talk)) == 2000
    assert await inspect(Talk({}), "a", contexts=True) is None


@pytest.mark.parametrize("data", [b"", b"\0\0\0\2a", b"\xff\xff\xff\xff", b"\0\0\0\1\xff"])
async def test_wrong_lists_are_refused(data: bytes) -> None:
    talk = Talk({3: Answer(((SERVER, data),), OptionReply.ACK)})
    if data == b"":
        data = b"\0"
        talk = Talk({3: Answer(((INFO, data),), OptionReply.ACK)})
    with pytest.raises(ProtocolError):
        await list_exports(talk)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=40)), max_size=5),
    st.sampled_from([ACK, ERR_UNSUP, 2**31 + 6]),
)
def test_any_answers_give_an_agreement_or_a_clear_error(
    replies: list[tuple[int, bytes]], final: int
) -> None:
    answer = Answer(tuple(replies), final)
    talk = Talk({8: YES, 10: answer, 7: answer, 3: answer, 6: answer, 9: answer})
    for work in (
        enter(talk, "disk", extended=True, contexts=["a:b"]),
        list_exports(talk),
        inspect(talk, "disk", contexts=True),
    ):
        with contextlib.suppress(NbdError, StopIteration):
            work.send(None)  # the coroutine never suspends
