"""The fast path for single requests: it serves usual requests, and leaves all others alone."""

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import DeviceError
from blockdev.memory import MemoryDevice
from nbd.constants import ExportFlag
from nbd.server.memory import Memory
from nbd.server.quick import QuickLane
from nbd.server.receiver import Receiver
from nbd.server.replies import ExtendedReplies, Replies, SimpleReplies, StructuredReplies
from nbd.server.sender import Sender
from nbd.server.terms import Counters, Terms
from nbd.server.transmission import RequestParser
from tests.unit.nbd.devices import FailingDevice, SlowDevice
from tests.unit.nbd.mock_clock import REAL_TIME
from tests.unit.nbd.wire import (
    DF,
    DISC,
    FLUSH,
    FUA,
    MIB,
    PAYLOAD_LEN,
    READ,
    TRIM,
    WRITE,
    extended_request,
    request,
    running,
    write,
)

CONTENT = random.Random(1).randbytes(64 << 10)
PAYLOAD_MAX = 16 << 10
MODES: list[Replies] = [SimpleReplies(), StructuredReplies(), ExtendedReplies()]


@dataclass
class Bench:
    """A lane with both ends of its connection."""

    lane: QuickLane
    parser: RequestParser
    device: MemoryDevice
    client: socket.socket
    counters: Counters
    sender: Sender

    def answer(self) -> bytes:
        self.client.setblocking(False)
        try:
            return self.client.recv(MIB)
        except BlockingIOError:
            return b""


@contextmanager
def bench(
    device: MemoryDevice, replies: Replies = MODES[0], *, read_only: bool = False
) -> Iterator[Bench]:
    client, server = socket.socketpair()
    with client, server:
        server.setblocking(False)
        extended = isinstance(replies, ExtendedReplies)
        flags = ExportFlag.HAS_FLAGS | (ExportFlag.READ_ONLY if read_only else ExportFlag(0))
        memory = Memory(MIB, 1.0)
        parser = RequestParser(payload_bytes_max=PAYLOAD_MAX, memory=memory, extended=extended)
        counters, sender = Counters(), Sender(server)
        lane = QuickLane(
            device, Terms(flags, replies, extended, {}), parser, Receiver(server), sender,
            counters, PAYLOAD_MAX,
        )  # fmt: skip
        yield Bench(lane, parser, device, client, counters, sender)


def filled(grain: int = 1) -> MemoryDevice:
    device = MemoryDevice(len(CONTENT), block_bytes=grain)
    assert device.try_write(0, CONTENT)
    return device


def content(device: MemoryDevice) -> bytes:
    got = MemoryDevice.try_read(device, 0, device.size_bytes)
    assert got is not None
    return bytes(got)


def left(made: Bench) -> bytes:
    """Return the received bytes that the general loop will find."""
    start, end = made.parser.span()
    return bytes(made.parser.usual[4][start:end])


def assert_left(made: Bench, sent: bytes) -> None:
    """Send bytes; assert that the lane received them and left them whole to the general loop."""
    before = content(made.device)
    made.client.sendall(sent)
    singles, count, more = made.lane.serve_singles(5)
    assert (singles, count) == (0, len(sent))
    assert left(made) == sent
    # Part of a header, or a header whose payload is to come, needs no look by the general loop.
    assert more or len(sent) < made.parser.header_bytes or sent[7] == WRITE
    assert content(made.device) == before
    assert made.answer() == b""
    assert made.counters == Counters()


sizes = st.sampled_from([0, 1, 511, 512, 4096, PAYLOAD_MAX, PAYLOAD_MAX + 512])
places = st.sampled_from([0, 1, 512, 4096, len(CONTENT) - 512, len(CONTENT), 1 << 63])


@given(
    kind=st.sampled_from([READ, WRITE, READ, WRITE, FLUSH, TRIM, 999]),
    flags=st.sampled_from([0, 0, 0, FUA, DF, PAYLOAD_LEN, PAYLOAD_LEN | FUA]),
    offset=places, length=sizes, replies=st.sampled_from(MODES), grain=st.sampled_from([1, 512]),
    spoiled=st.sampled_from(["", "", "", "magic", "short", "more"]), read_only=st.booleans(),
)  # fmt: skip
def test_usual_requests_are_served_and_all_others_left(
    kind: int, flags: int, offset: int, length: int, replies: Replies, grain: int, spoiled: str,
    read_only: bool,
) -> None:  # fmt: skip
    """Goal: a request gets exactly the answer of the protocol, or is left untouched."""
    extended = isinstance(replies, ExtendedReplies)
    make = extended_request if extended else request
    payload = CONTENT[-length:] if kind == WRITE and length else b""
    sent = make(kind, offset, length, cookie=99, flags=flags) + payload
    if spoiled == "magic":
        sent = b"\x00" + sent[1:]
    elif spoiled:
        sent = sent[:-1] if spoiled == "short" else sent + b"x"
    usual_flags = PAYLOAD_LEN if extended and kind == WRITE else 0
    usual = (
        kind in (READ, WRITE) and flags == usual_flags and spoiled in ("", "more")
        and 0 < length <= PAYLOAD_MAX and offset + length <= len(CONTENT)
        and not (offset | length) % grain and not (read_only and kind == WRITE)
    )  # fmt: skip
    with closing_device(filled(grain)) as device, bench(device, replies, read_only=read_only) as b:
        if not usual:
            assert_left(b, sent)
            return
        b.client.sendall(sent)
        assert b.lane.serve_singles(1) == ((0, len(sent), False) if spoiled else (1, None, False))
        assert left(b) == (b"x" if spoiled else b"")
        if kind == READ:
            data = CONTENT[offset : offset + length]
            assert b.answer() == replies.data(99, offset, length) + data
            assert b.counters == Counters(requests=1, read_bytes=length)
        else:
            assert b.answer() == replies.done(WRITE, 99, offset)
            assert b.counters == Counters(requests=1, written_bytes=length)
            expected = CONTENT[:offset] + payload + CONTENT[offset + length :]
            assert content(device) == expected


@contextmanager
def closing_device(device: MemoryDevice) -> Iterator[MemoryDevice]:
    yield device
    trio.run(device.close)


def test_requests_that_the_device_does_not_serve_at_once_are_left() -> None:
    for device in (SlowDevice(), FailingDevice(DeviceError("no"), at_once=True)):
        for sent in (request(READ, 0, 512), write(0, b"x" * 512)):
            with bench(device) as made:
                made.client.sendall(sent)
                assert made.lane.serve_singles(1) == (0, len(sent), True)
                assert left(made) == sent
                assert made.answer() == b""


def test_serving_ends_when_no_request_comes_and_when_the_turn_is_over() -> None:
    with closing_device(filled()) as device, bench(device) as made:
        assert made.lane.serve_singles(3) == (0, None, False)
        made.client.sendall(request(READ, 0, 512))
        assert made.lane.serve_singles(3) == (1, None, False)
        made.client.sendall(request(READ, 0, 512))
        assert made.lane.serve_singles(1) == (1, None, False)


def test_a_batch_ends_at_its_limits_and_before_an_unusual_request() -> None:
    """Goal: queued replies are bounded, and requests are served in their order."""
    one = request(READ, 0, PAYLOAD_MAX)
    with closing_device(filled()) as device, bench(device) as made:
        made.client.sendall(one * 100 + request(FLUSH) + one)
        assert made.lane.serve_singles(5)[::2] == (0, True)
        assert made.lane.limited
        assert made.counters.requests == 64  # of 16 KiB: a MiB
        assert made.lane.serve_received()
        assert not made.lane.limited
        assert made.counters.requests == 100
        assert left(made) == request(FLUSH) + one


def test_a_client_that_does_not_read_gets_the_rest_later() -> None:
    """Goal: bytes that the socket does not take stay in the sender, none lost or repeated."""
    with closing_device(filled()) as device, bench(device) as made:
        asked = 0
        while not made.sender.replies:
            made.client.sendall(request(READ, 0, PAYLOAD_MAX))
            made.lane.serve_singles(1)
            asked += 1
            assert asked < 100
        taken = b""
        while part := made.answer():
            taken += part
            assert made.sender.drain_now() or made.sender.replies
        one = struct.pack(">IIQ", 0x67446698, 0, 7) + CONTENT[:PAYLOAD_MAX]
        assert taken == one * asked


@REAL_TIME
async def test_a_client_that_waits_for_each_answer_is_served_by_the_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: all answers are right while requests of all kinds come one by one, also the requests
    that the lane leaves. The lane polls very long, so that it serves enough on any machine."""
    monkeypatch.setattr("nbd.server.quick.LOOKS", 50_000)
    served = []
    honest = QuickLane.serve_singles

    def counted(self: QuickLane, most: int) -> tuple[int, int | None, bool]:
        result = honest(self, most)
        served.append(result[0])
        return result

    monkeypatch.setattr(QuickLane, "serve_singles", counted)
    async with running(tmp_path) as run:
        client = await run.entered()
        sock = client.stream.socket
        with closing(socket.socket(fileno=sock.detach())) as plain:
            await trio.to_thread.run_sync(one_by_one, plain)
        await run.idle()
    assert sum(served) > 500


def one_by_one(sock: socket.socket) -> None:
    coin, model = random.Random(2), bytearray(MIB)
    sock.setblocking(True)
    reader = sock.makefile("rb")
    for cookie in range(1500):
        offset, length = coin.randrange(MIB - 8192), coin.randrange(1, 8192)
        dice = coin.random()
        if dice < 0.45:
            data = coin.randbytes(length)
            model[offset : offset + length] = data
            sock.sendall(write(offset, data, cookie=cookie, flags=FUA * (dice < 0.02)))
            expected, error = b"", 0
        elif dice < 0.9:
            sock.sendall(request(READ, offset, length, cookie=cookie))
            expected, error = bytes(model[offset : offset + length]), 0
        elif dice < 0.95:
            sock.sendall(request(FLUSH, cookie=cookie))
            expected, error = b"", 0
        else:
            sock.sendall(request(READ, MIB - 1, 2, cookie=cookie))
            expected, error = b"", 22
        assert reader.read(16) == struct.pack(">IIQ", 0x67446698, error, cookie)
        assert reader.read(len(expected)) == expected
    sock.sendall(request(DISC))
    assert reader.read(1) == b""
    reader.close()
