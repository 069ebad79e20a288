"""Makes right and wrong replies of NBD servers, and judges them by the protocol.

`judge` is written from the protocol in a slow and plain way: with all bytes at hand, and one mask
per read. The client's parser must give the same outcomes.
"""

import random
import struct
from dataclasses import dataclass, field
from itertools import pairwise

from nbd.client.negotiation import Mode

READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS = 0, 1, 3, 4, 5, 6, 7
CONTEXTS = {5: "base:allocation", 9: "x:y"}
TEXT_MAX, MORE_MAX = 4096, 256
EXTENTS_SHOWN = 64 << 10


@dataclass
class Asked:
    """A request in flight, and the parts of its answer so far."""

    kind: int
    offset: int
    length: int
    content: bytearray = field(default_factory=bytearray)
    came: bytearray = field(default_factory=bytearray)
    runs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    error: int = 0
    text: str = ""

    def outcome(self) -> tuple[object, ...]:
        if self.error:
            return "error", self.error, self.text
        return "good", bytes(self.content), self.runs


class BadError(Exception):
    """The replies break a rule."""


class MoreError(Exception):
    """The replies are right so far, but not whole."""


def need(good: bool) -> None:
    if not good:
        raise BadError


@dataclass
class Judge:
    mode: Mode
    asked: dict[int, Asked]
    stream: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        if len(self.stream) - self.at < count:
            raise MoreError
        self.at += count
        return self.stream[self.at - count : self.at]

    def reply(self) -> tuple[int, tuple[object, ...]] | None:
        """Take one chunk; return cookie and outcome if it was the last one of its request."""
        if len(self.stream) - self.at < 16:  # the shortest reply
            raise MoreError
        (magic,) = struct.unpack(">I", self.take(4))
        offset = None
        if magic == 0x67446698 and self.mode is not Mode.EXTENDED:
            error, cookie = struct.unpack(">IQ", self.take(12))
            need(cookie in self.asked)
            self.simple(self.asked[cookie], error)
            return self.done(cookie)
        if magic == 0x668E33EF and self.mode is Mode.STRUCTURED:
            flags, kind, cookie, length = struct.unpack(">HHQI", self.take(16))
        elif magic == 0x6E8A278C and self.mode is Mode.EXTENDED:
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.take(28))
        else:
            raise BadError
        need(cookie in self.asked)
        need(flags in (0, 1))
        asked = self.asked[cookie]
        need(offset is None or offset == asked.offset)
        if kind == 1 and len(self.stream) - self.at < 8:
            raise MoreError  # because the client looks at the offset before the length
        need(length < 1 << 25)  # because no request here asks for so much
        self.chunk(asked, kind, self.take(length), last=flags == 1)
        return self.done(cookie) if flags else None

    def simple(self, asked: Asked, error: int) -> None:
        need(asked.kind != READ or self.mode is Mode.SIMPLE)
        if error:
            asked.error = asked.error or error  # an earlier chunk may have had an error
        elif asked.kind == READ:
            asked.content[:] = self.take(asked.length)
            asked.came[:] = b"\1" * asked.length

    def chunk(self, asked: Asked, kind: int, payload: bytes, *, last: bool) -> None:
        if kind & 0x8000:
            self.error(asked, kind, payload)
        elif kind == 0:
            need(last and not payload)
        elif kind == 1:
            need(asked.kind == READ and len(payload) > 8)
            self.content(asked, int.from_bytes(payload[:8]), payload[8:])
        elif kind == 2:
            need(asked.kind == READ and len(payload) == 12)
            length = int.from_bytes(payload[8:])
            need(0 < length <= asked.length)
            self.content(asked, int.from_bytes(payload[:8]), bytes(length))
        elif kind == (6 if self.mode is Mode.EXTENDED else 5):
            need(asked.kind == STATUS)
            self.status(asked, payload)
        else:
            raise BadError

    def content(self, asked: Asked, at: int, data: bytes) -> None:
        start = at - asked.offset
        need(start >= 0 and start + len(data) <= asked.length)
        need(not any(asked.came[start : start + len(data)]))
        asked.came[start : start + len(data)] = b"\1" * len(data)
        asked.content[start : start + len(data)] = data

    def status(self, asked: Asked, payload: bytes) -> None:
        wide = self.mode is Mode.EXTENDED
        head, size = (8, 16) if wide else (4, 8)
        need(len(payload) >= head + size and (len(payload) - head) % size == 0)
        number, count = int.from_bytes(payload[:4]), (len(payload) - head) // size
        need(not wide or int.from_bytes(payload[4:8]) == count)
        need(number in CONTEXTS and CONTEXTS[number] not in asked.runs)
        runs = list(struct.iter_unpack(">QQ" if wide else ">II", payload[head:]))
        need(all(length for length, _ in runs))
        need(sum(length for length, _ in runs[:-1]) < asked.length)
        asked.runs[CONTEXTS[number]] = runs[:EXTENTS_SHOWN]

    def error(self, asked: Asked, kind: int, payload: bytes) -> None:
        tail = 8 if kind == 0x8002 else 0
        need(6 + tail <= len(payload) <= 6 + TEXT_MAX + MORE_MAX)
        error, length = struct.unpack(">IH", payload[:6])
        need(error and length <= min(len(payload) - 6 - tail, TEXT_MAX))
        if tail:
            at = int.from_bytes(payload[6 + length : 14 + length])
            need(asked.offset <= at < asked.offset + asked.length)
        if not asked.error:
            asked.error = error
            asked.text = payload[6 : 6 + length].decode(errors="replace")

    def done(self, cookie: int) -> tuple[int, tuple[object, ...]]:
        asked = self.asked[cookie]
        if not asked.error:
            need(asked.kind != READ or all(asked.came))
            need(asked.kind != STATUS or asked.runs.keys() == set(CONTEXTS.values()))
        del self.asked[cookie]
        return cookie, asked.outcome()


def judge(
    mode: Mode, requests: list[tuple[int, int, int]], stream: bytes
) -> tuple[list[tuple[int, tuple[object, ...]]], str]:
    """Return cookies and outcomes of the answered requests, and whether the rest of the stream is
    "bad", not yet whole ("more"), or empty ("good").
    """
    asked = {}
    for cookie, (kind, offset, length) in enumerate(requests, 1):
        size = length if kind == READ else 0
        asked[cookie] = Asked(kind, offset, length, bytearray(size), bytearray(size))
    parser = Judge(mode, asked, stream)
    answers: list[tuple[int, tuple[object, ...]]] = []
    while True:
        start = parser.at
        try:
            answer = parser.reply()
        except BadError:
            return answers, "bad"
        except MoreError:
            return answers, "good" if start == len(stream) else "more"
        if answer is not None:
            answers.append(answer)


# Making replies


class Maker:
    """Answers some requests, in pieces and in any order; a share `lies` of the answers is wrong in
    one thing."""

    def __init__(self, rng: random.Random, mode: Mode, lies: float = 0) -> None:
        self.rng = rng
        self.mode = mode
        self.lies = lies
        self.requests = [self._request() for _ in range(rng.randint(1, 4))]

    def _request(self) -> tuple[int, int, int]:
        kinds = (READ, READ, READ, WRITE, FLUSH, TRIM, CACHE, ZEROES)
        kind = self.rng.choice(kinds if self.mode is Mode.SIMPLE else (*kinds, STATUS, STATUS))
        offset = self.rng.choice((0, 512, self.rng.randrange(1 << 40)))
        return kind, offset, self.rng.choice((1, 16, self.rng.randint(1, 200)))

    def stream(self) -> bytes:
        queues = [self._answer(cookie) for cookie in range(1, len(self.requests) + 1)]
        if self.mode is Mode.SIMPLE or self.rng.random() < 0.5:
            self.rng.shuffle(queues)
            return b"".join(chunk for queue in queues for chunk in queue)
        out = b""
        while queues := [one for one in queues if one]:  # chunks of several requests in turn
            out += self.rng.choice(queues).pop(0)
        return out

    def _answer(self, cookie: int) -> list[bytes]:
        rng = self.rng
        kind, offset, length = self.requests[cookie - 1]
        fails = rng.random() < 0.2
        error = rng.choice((1, 5, 22, 28, 95, 9999)) if fails else 0
        simple = struct.pack(">IIQ", 0x67446698, error, cookie)
        if self.mode is Mode.SIMPLE:
            return [simple + (rng.randbytes(length) if kind == READ and not fails else b"")]
        if self.mode is Mode.STRUCTURED and kind != READ and (fails or kind != STATUS):
            return [simple]
        chunks: list[tuple[int, bytes]] = []
        if kind == READ:
            chunks = self._pieces(offset, length)
        elif kind == STATUS:
            chunks = [self._status(number, length) for number in CONTEXTS]
        rng.shuffle(chunks)
        if fails:
            text = rng.choice((b"", b"bad", b"\xff" * 20))
            chunks = chunks[: rng.randint(0, len(chunks))]
            head = struct.pack(">IH", error, len(text)) + text
            if kind == READ and rng.random() < 0.5:
                chunks.append((0x8002, head + (offset + rng.randrange(length)).to_bytes(8)))
            else:
                chunks.append((rng.choice((0x8001, 0x8077)), head))
            rng.shuffle(chunks)
        if not chunks or rng.random() < 0.5:
            chunks.append((0, b""))
        flags = [0] * (len(chunks) - 1) + [1]
        if rng.random() < self.lies:
            self._lie(chunks, flags, offset, length)
        return [
            self._chunk(cookie, number, payload, flag)
            for (number, payload), flag in zip(chunks, flags, strict=True)
        ]

    def _lie(
        self, chunks: list[tuple[int, bytes]], flags: list[int], offset: int, length: int
    ) -> None:
        """Make one change that a server must not make; some changes turn out to be harmless."""
        rng = self.rng
        at = rng.randrange(len(chunks))
        kind, payload = chunks[at]
        extents = 16 if self.mode is Mode.EXTENDED else 8
        match rng.randrange(10):
            case 0:  # a chunk twice
                chunks.insert(at, chunks[at])
                flags.insert(0, 0)
            case 1:  # part of the data twice, or more data than was asked for
                start, more = rng.randint(-2, length), rng.randint(0, length)
                where = ((offset + start) % 2**64).to_bytes(8)
                data = (2, where + more.to_bytes(4)), (1, where + bytes(more))
                chunks.insert(rng.randint(0, len(chunks)), rng.choice(data))
                flags.insert(0, 0)
            case 2:  # a payload cut short
                chunks[at] = kind, payload[: rng.choice((0, 4, 6, 8, extents, 12))]
            case 3:  # an extent more: empty, or behind the range
                run = rng.choice((0, 1, length)).to_bytes(extents // 2) + bytes(extents // 2)
                count = int.from_bytes(payload[4:8]) + 1
                head = payload[:4] + count.to_bytes(4) if kind == 6 else payload[:4]
                tail = payload[len(head) :]
                chunks[at] = kind, head + (run + tail if rng.random() < 0.3 else tail + run)
            case 4:  # a chunk is missing
                del chunks[at], flags[0]
            case 5:  # an end too early, or no end
                flags[at] ^= 1
            case 6:
                flags[at] |= 1 << rng.randrange(1, 16)
            case 7:
                chunks[at] = rng.choice((0, 1, 2, 3, 5, 6, 0x8001, 0x8002)), payload
            case 8:  # an error without a number, or at an offset outside the request
                place = rng.choice((0, offset - 1, offset, offset + length)) % 2**64
                error = struct.pack(">IH", rng.choice((0, 5)), rng.choice((0, 0, 1)))
                kind = rng.choice((0x8001, 0x8002))
                chunks[at] = kind, error + (place.to_bytes(8) if rng.random() < 0.7 else b"")
            case _:  # a payload that is too long
                chunks[at] = kind, payload + rng.choice((b"\0", bytes(4), bytes(extents)))

    def _pieces(self, offset: int, length: int) -> list[tuple[int, bytes]]:
        rng = self.rng
        cuts = sorted({0, length, *(rng.randint(0, length) for _ in range(rng.randint(0, 4)))})
        pieces = []
        for start, end in pairwise(cuts):
            at = (offset + start).to_bytes(8)
            if rng.random() < 0.3:
                pieces.append((2, at + (end - start).to_bytes(4)))
            else:
                pieces.append((1, at + rng.randbytes(end - start)))
        return pieces

    def _status(self, number: int, length: int) -> tuple[int, bytes]:
        rng = self.rng
        runs, total = list[int](), 0
        while total < length and len(runs) < 6:
            run = rng.choice((1, rng.randint(1, length), rng.randint(1, 1 << 30)))
            runs += [run, rng.randrange(4)]
            total += run
        if self.mode is Mode.EXTENDED:
            return 6, struct.pack(f">II{len(runs)}Q", number, len(runs) // 2, *runs)
        return 5, struct.pack(f">I{len(runs)}I", number, *runs)

    def _chunk(self, cookie: int, kind: int, payload: bytes, flags: int) -> bytes:
        if self.mode is Mode.EXTENDED:
            offset = self.requests[cookie - 1][1]
            head = struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, cookie, offset, len(payload))
        else:
            head = struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload))
        return head + payload


INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    12,
    13,
    255,
    4096,
    4097,
    0x7FFF,
    0x8001,
    0x8002,
    0xFFFF,
)


def spoil(rng: random.Random, stream: bytes) -> bytes:
    """Change a stream as a broken, hostile or interrupted server might."""
    at = rng.randrange(len(stream) + 1)
    end = min(at + rng.choice((1, 4, 8, 20, rng.randint(1, 100))), len(stream))
    match rng.randrange(8):
        case 0:
            return stream[:at]
        case 1:
            return stream[:at] + stream[end:]
        case 2:
            return stream[:end] + stream[at:]  # a part twice
        case 3:
            return stream[:at] + rng.randbytes(end - at) + stream[end:]
        case 4:
            width = rng.choice((1, 2, 4, 8))
            number: int = rng.choice((*INTERESTING, 2 ** (8 * width) - 1, 2 ** (8 * width - 1)))
            new = (number & ((1 << 8 * width) - 1)).to_bytes(width)
            return stream[:at] + new + stream[at + width :]
        case 5:
            return stream[:at] + rng.randbytes(rng.randint(1, 40)) + stream[at:]
        case 6:
            return stream + stream[at:end]
        case _:
            if at == len(stream):
                return stream
            return stream[:at] + bytes([stream[at] ^ 1 << rng.randrange(8)]) + stream[at + 1 :]
