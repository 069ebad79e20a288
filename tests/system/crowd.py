"""Many NBD clients in one loop, each with many requests in flight, that verify every byte.

Every slot of a client has 64 KiB to itself and one request under way, so what it reads is known.
Speaks NBD itself, on non-blocking sockets, to keep a server busy from one thread.
"""

import os
import random
import select
import socket
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

READ, WRITE, _, FLUSH, TRIM, _, ZEROES = range(7)
BLOCK_BYTES = 4096
SLOT_BYTES = 64 << 10
_NOISE = random.Random(5).randbytes(1 << 20)
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_ANSWER_S = 300
"""No answer from anybody for so long is a hang."""

LOOKS = 30

Address = str | tuple[str, int]


@dataclass
class Slot:
    """A request that is under way, and what its bytes must be."""

    start: int
    content: bytearray = field(default_factory=lambda: bytearray(SLOT_BYTES))
    kind: int = FLUSH
    at: int = 0
    length: int = 0
    sent_at: int = 0


@dataclass
class Turns:
    """A clock that counts answers: slow machines and fast ones see the same."""

    now: int = 0


class Member:
    """One client of the crowd; `region` is where its bytes begin."""

    def __init__(
        self, address: Address, export: str, turns: Turns, *, region: int, slots: int, seed: int
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.waits = array("q")
        """Answers to anybody between each request and its own answer."""
        self._turns = turns
        self.slots = [Slot(region + number * SLOT_BYTES) for number in range(slots)]
        self._rng = random.Random(seed)
        self._out = bytearray()
        self._in = bytearray()
        self.sock.connect(address)
        if family == socket.AF_INET:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = export.encode()
        self.sock.sendall(
            b"\0\0\0\3IHAVEOPT" + struct.pack(">III", 7, len(name) + 6, len(name)) + name + b"\0\0"
        )
        greeting = 18 + (20 + 12) + (20 + 14) + 20  # export, block sizes, acknowledgement
        said = self.sock.recv(greeting, socket.MSG_WAITALL)
        assert said.endswith(struct.pack(">III", 7, 1, 0)), said
        self.sock.setblocking(False)

    def ask(self, number: int) -> None:
        """Begin another request of a slot."""
        slot, rng = self.slots[number], self._rng
        likely = rng.random()
        slot.length = BLOCK_BYTES if likely < 0.9 else SLOT_BYTES
        slot.at = rng.randrange(0, SLOT_BYTES - slot.length + 1, BLOCK_BYTES)
        slot.kind = READ if rng.random() < 0.5 else WRITE
        payload = b""
        if likely < 0.02:
            slot.kind = rng.choice((FLUSH, TRIM, ZEROES, ZEROES))
        if slot.kind == FLUSH:
            slot.length = slot.at = 0
        end = slot.at + slot.length
        if slot.kind == WRITE:
            noise = rng.randrange(len(_NOISE) - SLOT_BYTES)
            payload = _NOISE[noise : noise + slot.length]
            slot.content[slot.at : end] = payload
        elif slot.kind in (TRIM, ZEROES):  # of whole blocks: a trim zeroes them
            slot.content[slot.at : end] = bytes(slot.length)
        offset = slot.start + slot.at if slot.length else 0
        self._out += _REQUEST.pack(0x25609513, 0, slot.kind, number, offset, slot.length)
        self._out += payload
        slot.sent_at = self._turns.now

    def push(self) -> bool:
        """Send what can be sent; return whether something is left."""
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            pass
        return bool(self._out)

    def take(self, again: bool) -> int:
        """Receive answers and verify them; return how many. With `again`, go on asking."""
        data = self.sock.recv(1 << 20)
        assert data, "the server hung up"
        self._in += data
        taken = at = 0
        while len(self._in) - at >= _REPLY.size:
            magic, error, number = _REPLY.unpack_from(self._in, at)
            assert (magic, error) == (0x67446698, 0)
            slot, first = self.slots[number], at + _REPLY.size
            end = first + slot.length * (slot.kind == READ)
            if len(self._in) < end:
                break
            if slot.kind == READ:
                expected = memoryview(slot.content)[slot.at : slot.at + slot.length]
                assert memoryview(self._in)[first:end] == expected, f"{slot.start + slot.at}"
            self._turns.now += 1
            self.waits.append(self._turns.now - slot.sent_at)
            at, taken = end, taken + 1
            if again:
                self.ask(number)
        del self._in[:at]
        return taken


@dataclass(frozen=True)
class Outcome:
    """What a crowd saw: how many answers others got before one's own."""

    requests: int
    p50: float
    p99: float
    longest: float
    busiest: int
    """Requests of the client that got most."""
    idlest: int
    worst_client_p99: float

    @staticmethod
    def of(members: list[Member]) -> "Outcome":
        each = [np.frombuffer(one.waits, dtype=np.int64) for one in members]
        everything = np.concatenate(each)
        p50, p99 = np.percentile(everything, (50, 99))
        return Outcome(
            len(everything),
            float(p50),
            float(p99),
            float(everything.max()),
            max(map(len, each)),
            min(map(len, each)),
            max(float(np.percentile(one, 99)) for one in each),
        )


def run_crowd(members: list[Member], requests: int, look: Callable[[], None]) -> Outcome:
    """Keep every slot of every client busy until so many are answered, then wait for the others.

    Args:
        look: called `LOOKS` times, after equal numbers of answers.
    """
    poll = select.epoll()
    by_descriptor = {member.sock.fileno(): member for member in members}
    for descriptor, member in by_descriptor.items():
        poll.register(descriptor, select.EPOLLIN)
        for number in range(len(member.slots)):
            member.ask(number)
    waiting = sum(len(member.slots) for member in members)
    answered = looks = 0
    pushing = set(members)
    while waiting:
        for member in list(pushing):
            if not member.push():
                pushing.discard(member)
        events = poll.poll(0.001 if pushing else _ANSWER_S)
        assert events or pushing, "nobody was answered for minutes"
        more = answered < requests
        for descriptor, _ in events:
            member = by_descriptor[descriptor]
            taken = member.take(more)
            answered += taken
            if not more:
                waiting -= taken
            pushing.add(member)
        if answered >= looks * requests // LOOKS:
            look()
            looks += 1
    poll.close()
    return Outcome.of(members)


def resident_mib(process: int) -> float:
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
