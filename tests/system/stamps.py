"""A client that knows what it may read: stamped blocks, and what was flushed of them.

Every 4 KiB block that is written holds its own number, a sequence number that rises with each
write, and bytes that follow from both. Whatever is read later is one of the stamps
written to that block, zeroes, or garbage; and the history says which stamps are too old.

It speaks NBD itself, over one Unix socket, so that nothing in between retries or caches.
"""

import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.processes import PATIENCE_S, POLL_S

BLOCK_BYTES = 4096
BATCH = 32
"""Requests under way at once; no two of them write to the same block."""
WRITE_BLOCKS_MAX = 16
FUA_SHARE = 0.02
FLUSH_SHARE = 0.5
ZERO_SHARE = 0.1
READ_BYTES = 1 << 20

_STAMP = struct.Struct("<8sQQ")
_MAGIC = b"STAMPED."
_ZERO = bytes(BLOCK_BYTES)

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_READ, _WRITE, _FLUSH, _WRITE_ZEROES = 0, 1, 3, 6
_FUA = 1
_REQUEST_MAGIC = 0x25609513
_FLUSH_REQUEST = _REQUEST.pack(_REQUEST_MAGIC, 0, _FLUSH, BATCH, 0, 0)


class ServerGone(Exception):
    """The connection ended, as it does when the server is killed."""


def stamped(block: int, sequence: int) -> bytes:
    """What one write puts into one block; two in three do not compress."""
    head = _STAMP.pack(_MAGIC, block, sequence)
    rest = BLOCK_BYTES - len(head)
    if sequence % 3:
        return head + random.Random(sequence << 32 | block).randbytes(rest)
    return head + head * (rest // len(head)) + head[: rest % len(head)]


@dataclass
class History:
    """What one block may hold: `writes` since the newest flushed one, oldest first.

    A sequence number, or 0 for zeroes. The first of the list is flushed, or was never needed.
    """

    writes: list[int] = field(default_factory=lambda: [0])

    def flushed(self, sequence_max: int) -> None:
        """All writes up to this number are durable: nothing before the last of them counts."""
        while len(self.writes) > 1 and abs(self.writes[1]) <= sequence_max:
            del self.writes[0]


class Model:
    """All blocks of one volume. Zeroed blocks carry the negated number of their write."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.sequence = 0
        self.history: dict[int, History] = {}
        self._unflushed: set[int] = set()

    def write(self, block: int, *, zero: bool) -> bytes:
        """Note a write that is about to be sent; returns its bytes."""
        self.sequence += 1
        sequence = -self.sequence if zero else self.sequence
        self.history.setdefault(block, History()).writes.append(sequence)
        self._unflushed.add(block)
        return _ZERO if zero else stamped(block, self.sequence)

    def flushed(self, sequence_max: int) -> None:
        """A flush was answered that was sent when all writes up to this one were answered."""
        for block in list(self._unflushed):
            history = self.history[block]
            history.flushed(sequence_max)
            if len(history.writes) == 1:
                self._unflushed.discard(block)

    def forced(self, blocks: range) -> None:
        """The newest write to these blocks was answered, and asked to be durable by then."""
        for block in blocks:
            self.history[block].flushed(self.sequence)

    def settle(self, block: int, data: bytes) -> str | None:
        """Compare a block after a restart, and take what it holds for what it now is.

        Returns what is wrong with it, or None.
        """
        history = self.history.get(block)
        writes = [0] if history is None else history.writes
        if data == _ZERO:
            held = next((s for s in reversed(writes) if s <= 0), None)
        else:
            magic, number, sequence = _STAMP.unpack_from(data)
            if magic != _MAGIC or number != block or data != stamped(block, sequence):
                return f"garbage: {data[:32].hex()}"
            held = sequence if sequence in writes else None
        if held is None:
            found = "zeroes" if data == _ZERO else f"stamp {_STAMP.unpack_from(data)[2]}"
            return f"{found}, expected one of {writes}"
        if history is not None:
            history.writes = [held]
            self._unflushed.discard(block)
        return None


class StampedClient:
    """One connection that writes stamps at random places, and verifies them."""

    def __init__(self, path: Path, export: str, model: Model, rng: random.Random) -> None:
        self.model = model
        self.flushes = 0
        self.writes = 0
        self._rng = rng
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._negotiate(export.encode())

    def close(self) -> None:
        self._socket.close()

    def _negotiate(self, export: bytes) -> None:
        self._receive(18)
        # Fixed newstyle without zeroes; NBD_OPT_GO with no information requests.
        option = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 7, len(option)) + option)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._receive(20))
            self._receive(length)
            assert not kind & 1 << 31, f"export refused: {kind:#x}"
            if kind == 1:
                return

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = self._socket.recv(length - len(data))
            except ConnectionError as error:
                raise ServerGone from error
            if not piece:
                raise ServerGone
            data += piece
        return bytes(data)

    # -- writing

    def wait_for(self, *, writes: int, flushes: int) -> None:
        """Wait until another thread that writes has been answered so often.

        Raises:
            AssertionError: it took minutes.
        """
        deadline = time.monotonic() + PATIENCE_S
        while self.writes < writes or self.flushes < flushes:
            assert time.monotonic() < deadline, f"{self.writes} writes, {self.flushes} flushes"
            time.sleep(POLL_S)

    def write_until_killed(self) -> None:
        """Write and flush until the server is gone."""
        try:
            while True:
                self._batch()
        except ServerGone:
            self.close()

    def _batch(self) -> None:
        """Send a batch with maybe a flush among it, which covers all batches before."""
        before = self.model.sequence
        requests: list[bytes] = []
        taken: set[int] = set()
        forced: dict[int, range] = {}
        for cookie in range(BATCH):
            blocks = self._free_run(taken)
            fua = self._rng.random() < FUA_SHARE
            requests.append(self._request(cookie, blocks, fua=fua))
            if fua:
                forced[cookie] = blocks
        if self._rng.random() < FLUSH_SHARE:
            requests.insert(self._rng.randrange(BATCH), _FLUSH_REQUEST)
        for cookie in self._exchange(requests):
            if cookie == BATCH:
                self.flushes += 1
                self.model.flushed(before)
            elif cookie in forced:
                self.model.forced(forced[cookie])
        self.writes += BATCH

    def _free_run(self, taken: set[int]) -> range:
        while True:
            count = self._rng.choice((1, 1, 1, 2, 4, WRITE_BLOCKS_MAX))
            first = self._rng.randrange(self.model.blocks - count + 1)
            run = range(first, first + count)
            if taken.isdisjoint(run):
                taken.update(run)
                return run

    def _request(self, cookie: int, blocks: range, *, fua: bool) -> bytes:
        zero = self._rng.random() < ZERO_SHARE
        data = b"".join([self.model.write(block, zero=zero) for block in blocks])
        kind = _WRITE_ZEROES if zero else _WRITE
        head = _REQUEST.pack(
            _REQUEST_MAGIC, _FUA * fua, kind, cookie, blocks.start * BLOCK_BYTES, len(data)
        )
        return head if zero else head + data

    def _exchange(self, requests: list[bytes]) -> Iterator[int]:
        """Send requests; yields the cookie of each reply as it comes."""
        try:
            self._socket.sendall(b"".join(requests))
        except ConnectionError as error:
            raise ServerGone from error
        for _ in requests:
            magic, error_number, cookie = _REPLY.unpack(self._receive(_REPLY.size))
            assert magic == 0x67446698
            assert not error_number, f"request {cookie} failed: errno={error_number}"
            yield cookie

    # -- verifying

    def verify(self) -> list[str]:
        """Read all blocks; returns what is wrong with them."""
        wrong: list[str] = []
        step = READ_BYTES // BLOCK_BYTES
        for first in range(0, self.model.blocks, step):
            count = min(step, self.model.blocks - first)
            data = self.read(first, count)
            for i in range(count):
                part = data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
                problem = self.model.settle(first + i, part)
                if problem is not None:
                    wrong.append(f"block {first + i}: {problem}")
        return wrong

    def read(self, first: int, count: int) -> bytes:
        """Blocks as they are."""
        length = count * BLOCK_BYTES
        request = _REQUEST.pack(_REQUEST_MAGIC, 0, _READ, 1, first * BLOCK_BYTES, length)
        self._socket.sendall(request)
        magic, error_number, _ = _REPLY.unpack(self._receive(_REPLY.size))
        assert magic == 0x67446698
        assert not error_number, f"read failed: errno={error_number} first={first} blocks={count}"
        return self._receive(length)
