"""Hostile bytes into the protocol core: it gives the answers of the protocol, or closes.

Every stream is read twice, by `nbd` and by `tests.fuzz.nbd_reading`, and both must agree on
every answer, however the stream was cut.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from nbd.constants import CommandFlag, ExportFlag, OptionReply
from nbd.errors import ProtocolError
from nbd.server.handshake import (
    ContextRequest,
    Ended,
    Event,
    ExportRequest,
    ListRequest,
    Need,
    ServerHandshake,
    StartTls,
    Tls,
)
from nbd.server.memory import Memory
from nbd.server.options import ExportInfo
from nbd.server.transmission import RequestParser, narrow, refusal
from tests.fuzz import nbd_streams as streams
from tests.fuzz.nbd_reading import NAMES, SECRET, Asked, End, Haggle, Requests, read_requests
from tests.unit.nbd.wire import option_replies

GREETING = b"NBDMAGICIHAVEOPT\0\3"
SIZE_BYTES = streams.SIZE_BYTES
PAYLOAD_MAX = streams.PAYLOAD_MAX
FLAGS = ExportFlag.HAS_FLAGS | ExportFlag.SEND_DF
EXPORTS = [name.decode() for name in NAMES]


# -- negotiation


def answer(handshake: ServerHandshake, event: Event) -> None:
    """Answer an event as a server with the exports of `nbd_reading`."""
    if isinstance(event, ListRequest):
        handshake.answer_list(EXPORTS)
        return
    assert isinstance(event, ExportRequest | ContextRequest)
    name = event.name if isinstance(event, ExportRequest) else event.export
    if name == SECRET.decode():
        handshake.refuse(OptionReply.ERR_POLICY, f"not for you: {name!r}")
    elif name not in EXPORTS:
        handshake.refuse(OptionReply.ERR_UNKNOWN, f"no such export: {name!r}")
    elif isinstance(event, ContextRequest):
        handshake.answer_contexts(["base:allocation"])
    else:
        handshake.answer_export(ExportInfo(name, SIZE_BYTES, FLAGS, "about it"))


def haggle(handshake: ServerHandshake) -> tuple[End, bool]:
    """Handle all events in the bytes; return the negotiation's state, and whether TLS begins."""
    try:
        while True:
            event = handshake.next_event()
            if isinstance(event, Ended):
                return End.ABORTED, False
            if isinstance(event, StartTls):
                return End.OPEN, True
            if event is Need.DATA:
                return End.OPEN, False
            answer(handshake, event)
            if handshake.entered:
                return End.ENTERED, False
    except ProtocolError:
        return End.CLOSED, False


def check_replies(output: bytes, model: Haggle) -> None:
    """Check that the output is exactly the replies that are due, well-formed."""
    assert output.startswith(GREETING)
    due = [reply for reply in model.replies if reply[1]]
    output = output[len(GREETING) :]
    if len(due) != len(model.replies):
        assert model.replies[-1][1] == 0, "EXPORT_NAME comes last"
        assert output[-134:-124].startswith(SIZE_BYTES.to_bytes(8)) or (
            output[-10:].startswith(SIZE_BYTES.to_bytes(8))
        )
        size = 10 if output[-10:].startswith(SIZE_BYTES.to_bytes(8)) else 134
        output = output[:-size]
    replies = option_replies(output)
    assert [(number, kind) for number, kind, _ in replies] == due
    for _, kind, data in replies:
        if kind == OptionReply.ACK:
            assert not data
        elif kind >> 31:
            assert len(data) <= 4096
            assert "\0" not in data.decode()


def negotiate(policy: Tls, shutting_down: bool, arrives: list[bytes]) -> Haggle:
    """Feed both parsers, compare them after every piece; return the second one."""
    handshake, model = ServerHandshake(tls=policy), Haggle(policy, shutting_down)
    handshake.shutting_down = shutting_down
    output = handshake.data_to_send()
    for number, piece in enumerate(arrives):
        handshake.receive(piece)
        tls_due = model.receive(piece)
        end, tls = haggle(handshake)
        output += handshake.data_to_send()
        assert (end, tls) == (model.end, tls_due)
        if tls:
            handshake.secured()
            model.begin_tls()
        if end is End.ENTERED:
            assert handshake.trailing() == model.rest
            assert (handshake.structured, handshake.extended) == (model.structured, model.extended)
            assert handshake.contexts == ({0: "base:allocation"} if model.contexts() else {})
            model.rest += b"".join(arrives[number + 1 :])
        if end is not End.OPEN:
            break
    else:
        model.wrong = model.wrong or bool(model.rest) or not arrives
    check_replies(output, model)
    return model


# -- transmission


def parse(arrives: list[bytes], *, extended: bool) -> tuple[Requests, int]:
    """Feed a parser as a socket would; return the requests found, and the bytes of memory taken."""
    memory = Memory(1 << 30, 1.0)
    parser = RequestParser(
        payload_bytes_max=PAYLOAD_MAX, memory=memory, extended=extended, early=b""
    )
    found, taken = Requests(), 0
    stream, fed = b"".join(arrives), 0
    ends = deque(accumulate(map(len, arrives)))
    while True:
        try:
            for request in iter(parser.next_request, None):
                found.whole.append(as_asked(request, parser, extended))
        except ProtocolError:
            found.closed = True
            return found, taken
        if parser.large is not None:
            taken = max(taken, len(parser.large))
        while ends and ends[0] <= fed:
            ends.popleft()
        if not ends:
            return found, taken
        room = parser.room()
        count = min(len(room), ends[0] - fed)
        assert count
        room[:count] = stream[fed : fed + count]
        parser.received(count)
        fed += count


def as_asked(request: tuple[int, ...], parser: RequestParser, extended: bool) -> Asked:
    _, flags, kind, cookie, offset, length = request
    if extended and kind == 1:
        flags ^= CommandFlag.PAYLOAD_LEN
    payload: bytes | None = b""
    if flags & CommandFlag.PAYLOAD_LEN if extended else kind == 1:
        payload = bytes(parser.payload) if length <= PAYLOAD_MAX else None
        assert payload is not None or not len(parser.payload)
    return Asked(flags, kind, cookie, offset, length, payload)


def is_refused(asked: Asked, *, extended: bool, flags: ExportFlag = FLAGS) -> bool:
    """Whether the server refuses a request; if not, a device can carry it out as it is."""
    request = (0, asked.flags, asked.kind, asked.cookie, asked.offset, asked.length)
    if asked.kind == 2:
        return False
    if extended and asked.kind == 1:
        request = (0, asked.flags ^ CommandFlag.PAYLOAD_LEN, *request[2:])
    if asked.kind == 7:
        narrowed = narrow(request, asked.payload if extended else None, {0: "base:allocation"})
        if narrowed is None:
            return True
        request, only = narrowed
        assert only is None or set(only) <= {0}
    error = refusal(
        request, flags=flags, size_bytes=SIZE_BYTES, grain_bytes=1, payload_max=PAYLOAD_MAX
    )
    if error is not None:
        return True
    _, allowed, kind, _, offset, length = request
    assert kind in (0, 1, 3, 4, 5, 6, 7)
    assert kind == 3 or offset + length <= SIZE_BYTES
    assert not allowed & ~0b11111
    assert kind != 1 or len(asked.payload or b"") == length
    return False


def transmit(arrives: list[bytes], *, extended: bool) -> bool:
    """Compare both readings of requests; return whether the stream was malformed."""
    stream = b"".join(arrives)
    expected = read_requests(stream, extended=extended, payload_max=PAYLOAD_MAX)
    found, taken = parse(arrives, extended=extended)
    found.cut = expected.cut
    assert found == expected
    assert taken <= PAYLOAD_MAX, "as much as may be sent, whatever is claimed"
    refused = [is_refused(asked, extended=extended) for asked in found.whole]
    return expected.closed or expected.cut or any(refused)


# -- the inputs


@dataclass(frozen=True)
class Input:
    """One stream, in pieces; `extended` is None for a stream that begins with a negotiation."""

    arrives: list[bytes]
    policy: Tls = Tls.OFF
    shutting_down: bool = False
    extended: bool | None = None

    def is_wrong(self) -> bool:
        """Compare both readings; return whether the stream was malformed."""
        if self.extended is not None:
            return transmit(self.arrives, extended=self.extended)
        model = negotiate(self.policy, self.shutting_down, self.arrives)
        if model.end is not End.ENTERED:
            return model.wrong
        return transmit([model.rest], extended=model.extended) or model.wrong


def haggling(rng: random.Random) -> Input:
    stream = streams.spoil(rng, streams.haggling(rng))
    return Input(streams.pieces(rng, stream), rng.choice(list(Tls)), rng.random() < 0.05)


def transmission(rng: random.Random) -> Input:
    extended = rng.random() < 0.5
    stream = streams.spoil(rng, streams.requests(rng, extended))
    return Input(streams.pieces(rng, stream), extended=extended)


def conversation(rng: random.Random) -> Input:
    return Input(streams.pieces(rng, streams.spoil(rng, streams.conversation(rng))))


def noise(rng: random.Random) -> Input:
    start = rng.choice((b"", b"\0\0\0\3", b"\0\0\0\3IHAVEOPT", b"\x25\x60\x95\x13"))
    arrives = streams.pieces(rng, start + rng.randbytes(rng.choice((1, 10, 40, 300))))
    return Input(arrives, rng.choice(list(Tls)), extended=rng.choice((None, False, True)))


INPUTS = {"haggling": haggling, "transmission": transmission, "conversation": conversation,
          "noise": noise}  # fmt: skip
Make = Callable[[random.Random], Input]


every_kind = pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
short, long = (
    settings(
        max_examples=count, deadline=None, print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    for count in (200, 5000)
)  # fmt: skip


@every_kind
@short
@given(rng=st.randoms(use_true_random=False))
def test_both_readings_agree(make: Make, rng: random.Random) -> None:
    """Hypothesis plays the random generator, and finds the smallest stream that fails."""
    given_input = make(rng)
    note(str(given_input))
    given_input.is_wrong()


@pytest.mark.long
@every_kind
@long
@given(rng=st.randoms(use_true_random=False))
def test_both_readings_agree_for_long(make: Make, rng: random.Random) -> None:
    given_input = make(rng)
    note(str(given_input))
    given_input.is_wrong()


def malformed(make: Make, seed: str, count: int) -> None:
    """Feed inputs until `count` of them were malformed; inputs that break no rule do not count."""
    wrong = tried = 0
    while wrong < count:
        given_input = make(random.Random(f"{seed} {tried}"))
        tried += 1
        try:
            wrong += given_input.is_wrong()
        except BaseException:
            print(given_input)
            raise
    print(f"malformed={wrong} of={tried} {seed=}")


@every_kind
def test_malformed_inputs(make: Make) -> None:
    malformed(make, "short", 6000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
@every_kind
def test_a_million_malformed_inputs(make: Make, seed: int) -> None:
    """A million together with the other seeds."""
    malformed(make, f"long {seed}", 90_000)
