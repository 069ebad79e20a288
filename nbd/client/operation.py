"""One request to a server and its outcome. No I/O."""

from bisect import bisect_right

import numpy as np
import trio

from nbd.constants import Command, CommandFlag
from nbd.errors import ProtocolError

FRAGMENTS_MAX = 16 << 10
"""Most separate pieces of one READ that may have arrived at a time: servers send them in order, or
a few at once. Each costs some hundred bytes."""

_CHANGING = frozenset((Command.WRITE, Command.WRITE_ZEROES, Command.TRIM))
_NOTHING = memoryview(b"")


class Coverage:
    """The parts of a range that have arrived, sorted and disjoint."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Note a part. Raises ProtocolError if it overlaps another, or there are too many."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start)
        if (at and ends[at - 1] > start) or (at < len(starts) and starts[at] < end):
            raise ProtocolError(f"chunks of a reply overlap: offset={start} bytes={end - start}")
        joins_left = at > 0 and ends[at - 1] == start
        joins_right = at < len(starts) and starts[at] == end
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = end
        elif joins_right:
            starts[at] = start
        else:
            if len(starts) >= FRAGMENTS_MAX:
                raise ProtocolError("a reply comes in too many pieces")
            starts.insert(at, start)
            ends.insert(at, end)

    def is_all_of(self, start: int, end: int) -> bool:
        """Whether the whole range has arrived."""
        return self._starts == [start] and self._ends == [end]


class Operation:
    """A request of one command; its sender awaits `wait`.

    When `done`, exactly one of these holds: `lost` says why its connection ended first; `error`
    is the server's error number and `message` its text; or it succeeded, with `data` of a READ
    and `runs`, by context, of a BLOCK_STATUS.
    """

    __slots__ = (
        "_coverage", "_whole", "cookie", "data", "done", "error", "flags", "into", "kind", "length",
        "lost", "message", "offset", "payload", "runs", "since", "task",
    )  # fmt: skip

    def __init__(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: memoryview = _NOTHING,
        into: memoryview | None = None,
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.offset = offset
        self.length = length
        self.payload = payload
        self.into = into
        """Buffer for the data of a READ; a new one if None."""
        self.task: trio.lowlevel.Task | None = None
        """The task that waits for the outcome."""
        self.reset()

    def reset(self) -> None:
        """Forget the outcome, to try again."""
        self.cookie = 0
        self.since = 0.0
        self.done = False
        self.lost: Exception | None = None
        self.error = 0
        self.message = ""
        self.data: memoryview | bytes | None = None
        self.runs: dict[str, list[tuple[int, int]]] = {}
        self._whole = False
        self._coverage: Coverage | None = None

    @property
    def changes(self) -> bool:
        """Whether the request changes content."""
        return self.kind in _CHANGING

    @property
    def durable(self) -> bool:
        """Whether success means that the change is durable (FUA)."""
        return bool(self.flags & CommandFlag.FUA)

    def cost_bytes(self) -> int:
        """Return the bytes of memory that the request holds while in flight."""
        return self.length if self.kind in (Command.READ, Command.WRITE) else 0

    async def wait(self) -> None:
        """Wait until the request is done. When cancelled, it goes on: see `Connection.abandon`."""
        if not self.done:
            self.task = trio.lowlevel.current_task()

            def stop_waiting(_: object) -> trio.lowlevel.Abort:
                self.task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(stop_waiting)

    def finish(self) -> None:
        """Mark the request as done, and wake its waiting task."""
        self.done = True
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)

    def overlaps(self, other: "Operation") -> bool:
        """Whether both touch some byte."""
        return (
            self.offset < other.offset + other.length and other.offset < self.offset + self.length
        )

    def lose(self, reason: Exception) -> None:
        """Note that its connection failed; the part of a reply that arrived no longer counts, nor
        does an error in it.
        """
        self.lost = reason
        self.error = 0
        self.message = ""

    # Filled in by the parser of replies

    def fail(self, error: int, message: str = "") -> None:
        """Note an error of the server; the first one counts."""
        if not self.error:
            self.error = error
            self.message = message

    def take(self, at: int, length: int) -> None:
        """Note that a part of a READ arrives. Raises ProtocolError if it is outside or overlaps."""
        if at < self.offset or at + length > self.offset + self.length:
            raise ProtocolError(f"chunk is outside its request: offset={at} bytes={length}")
        if length == self.length and self._coverage is None and not self._whole:
            self._whole = True
            return
        if self._whole:
            raise ProtocolError(f"chunks of a reply overlap: offset={at} bytes={length}")
        if self._coverage is None:
            self._coverage = Coverage()
        self._coverage.add(at, at + length)

    def room(self, at: int, length: int) -> memoryview:
        """Return the buffer for a part of a READ that `take` accepted."""
        if self.data is None:
            # The requested length, not the one that the reply claims; untouched memory is free.
            self.data = self.into or np.empty(self.length, np.uint8).data
        assert isinstance(self.data, memoryview)
        start = at - self.offset
        return self.data[start : start + length]

    def is_whole(self) -> bool:
        """Whether all of a READ has arrived."""
        return self._whole or (
            self._coverage is not None
            and self._coverage.is_all_of(self.offset, self.offset + self.length)
        )
