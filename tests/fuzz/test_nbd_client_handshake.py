"""Any negotiation: for all bytes of a server, the client agrees on terms that the protocol allows
or gives a clear error."""

import random
import struct
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd.client.handshake import ANSWER_BYTES_MAX, Answer, ClientHandshake
from nbd.client.negotiation import (
    Agreement,
    RemoteExport,
    agree_on_mode,
    enter,
    inspect,
    list_exports,
)
from nbd.constants import Option
from nbd.errors import NbdError
from tests.fuzz.nbd_replies import spoil

ACK, SERVER, INFO, META = 1, 2, 3, 4
MAGIC = 0x3E889045565A9
ERRORS = [2**31 + number for number in range(1, 11)]


class EndError(Exception):
    """The server sends no more."""


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", MAGIC, option, kind, len(data)) + data


class Server:
    """Answers each option rightly or wrongly, at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.refuses = rng.choice((0.0, 0.3))
        self.wrong = rng.choice((0.0, 0.2))

    def greeting(self) -> bytes:
        flags = self.rng.choice((3, 3, 3, 1, 0, 2, 0xFFFF))
        return self._perhaps(b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags))

    def export_name(self) -> bytes:
        return self._perhaps(struct.pack(">QH", self._size(), self._flags())) + bytes(124)

    def answer(self, option: int) -> bytes:
        rng = self.rng
        if rng.random() < self.refuses:
            text = rng.choice((b"", b"no", b"\xff\xfe", b"x" * 4000))
            return self._perhaps(reply(option, rng.choice(ERRORS), text))
        parts = []
        if option in (Option.GO, Option.INFO):
            parts = [reply(option, INFO, data) for data in self._infos()]
        elif option == Option.LIST:
            names = [self._text() for _ in range(rng.randrange(4))]
            parts = [reply(option, SERVER, len(one).to_bytes(4) + one + b"x" * 3) for one in names]
        elif option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            parts = [
                reply(option, META, rng.randrange(5).to_bytes(4) + self._text())
                for _ in range(rng.randrange(3))
            ]
        if rng.random() < self.wrong:
            parts.append(reply(option, rng.choice((0, 2, 3, 4, 5, 99)), rng.randbytes(8)))
        rng.shuffle(parts)
        return self._perhaps(b"".join((*parts, reply(option, ACK))))

    def _infos(self) -> list[bytes]:
        rng = self.rng
        infos = [struct.pack(">HQH", 0, self._size(), self._flags())]
        if rng.random() < 0.7:
            sizes = sorted(rng.choice((1, 512, 4096, 1 << 16, 1 << 25)) for _ in "123")
            if rng.random() < self.wrong:
                sizes = [rng.choice((0, 3, 1 << 16, 1 << 17)) for _ in "123"]
            infos.append(struct.pack(">HIII", 3, *sizes))
        kinds = [kind for kind in (1, 2, 77) if rng.random() < 0.3]
        infos += [kind.to_bytes(2) + self._text() for kind in kinds]
        return infos if rng.random() > self.wrong else infos[1:]

    def _size(self) -> int:
        wrong = self.rng.random() < self.wrong
        return self.rng.choice((1 << 63, (1 << 64) - 1) if wrong else (0, 1 << 30, (1 << 63) - 1))

    def _flags(self) -> int:
        return self.rng.choice((0, 0x100) if self.rng.random() < self.wrong else (1, 5, 0xFFFF))

    def _text(self) -> bytes:
        wrong = self.rng.random() < self.wrong
        bad = (b"", b"\xff", b"a\0b", b"x" * 4097)
        return self.rng.choice(bad if wrong else (b"a", b"base:allocation", "dísk".encode()))

    def _perhaps(self, data: bytes) -> bytes:
        return spoil(self.rng, data) if self.rng.random() < self.wrong else data


class Talk:
    """The client's side of a negotiation, over bytes in random pieces, without I/O or waits."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.handshake = ClientHandshake()
        self.came = b""
        self._say(server.greeting())
        while not self.handshake.greeted():
            self._receive()
        assert self.handshake.data_to_send() in (b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\2", b"\0\0\0\3")
        self.fixed = self.handshake.fixed

    def _say(self, data: bytes) -> None:
        self.came += data

    def _receive(self) -> None:
        if not self.came:
            raise EndError
        count = self.server.rng.choice((1, 7, 20, 1 << 16))
        self.handshake.receive(self.came[:count])
        self.came = self.came[count:]

    async def ask(self, option: Option, data: bytes = b"") -> Answer:
        self.handshake.ask(option, data)
        sent = self.handshake.data_to_send()
        assert sent == struct.pack(">8sII", b"IHAVEOPT", option, len(data)) + data
        self._say(self.server.answer(option))
        while True:
            answer = self.handshake.answer()
            if answer is not None:
                return answer
            self._receive()
            assert len(self.handshake.trailing()) <= ANSWER_BYTES_MAX

    async def ask_export_name(self, name: bytes) -> tuple[int, int]:
        self.handshake.ask(Option.EXPORT_NAME, name)
        self.handshake.data_to_send()
        self._say(self.server.export_name())
        while True:
            answer = self.handshake.export_answer()
            if answer is not None:
                return answer
            self._receive()


def sound(export: RemoteExport) -> None:
    assert 0 <= export.size_bytes < 1 << 63
    assert export.flags & 1
    block = export.block_bytes
    assert 1 <= block <= 1 << 16
    assert block & (block - 1) == 0
    assert block <= export.preferred_bytes <= export.payload_bytes_max < 1 << 32
    for text in (export.name, export.description, *export.contexts):
        assert "\0" not in text
        assert len(text.encode()) <= 4096


async def entering(talk: Talk) -> None:
    agreement = await enter(talk, "disk", extended=True, contexts=["base:allocation", "x:y"])
    assert isinstance(agreement, Agreement)
    sound(agreement.export)
    assert len(set(agreement.contexts.values())) == len(agreement.contexts)
    assert all(0 <= number < 1 << 32 and name for number, name in agreement.contexts.items())


async def looking(talk: Talk) -> None:
    mode = await agree_on_mode(talk, extended=True)
    for name in (*(await list_exports(talk)), "disk"):
        assert "\0" not in name
        about = await inspect(talk, name, contexts=mode.value != "simple")
        if about is not None:
            sound(about)


def check(rng: random.Random, act: Callable[[Talk], Awaitable[None]]) -> bool:
    """Run one negotiation; return whether it succeeded."""
    try:
        talk = Talk(Server(rng))
        act(talk).__await__().send(None)
    except StopIteration:
        return True
    except (EndError, NbdError):
        return False
    raise AssertionError("it waits for something")


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([entering, looking]))
def test_a_negotiation_ends_soundly_or_clearly(
    rng: random.Random, act: Callable[[Talk], Awaitable[None]]
) -> None:
    check(rng, act)


@pytest.mark.parametrize("act", [entering, looking])
def test_many_negotiations(act: Callable[[Talk], Awaitable[None]]) -> None:
    rng = random.Random(1)
    good = sum(check(rng, act) for _ in range(4000))
    assert 500 < good < 3500


@pytest.mark.long
@pytest.mark.parametrize("act", [entering, looking])
@pytest.mark.parametrize("seed", range(10, 14))
def test_very_many_negotiations(act: Callable[[Talk], Awaitable[None]], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150_000):
        check(rng, act)
