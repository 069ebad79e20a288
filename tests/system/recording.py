"""Members that write down all that is done to them, and what a power cut would leave of it.

A recording is a list of events: an operation began, or ended. A cut lies between two of them. What
a flush had covered that ended before the cut is there, and so is each FUA write that had ended; all
else is kept, dropped or torn by the coin, one by one, as `blockdev.simulation.power` says.
"""

import time
from dataclasses import dataclass, field, replace

import trio
from typing_extensions import Buffer

from blockdev.memory import MemoryDevice
from blockdev.simulation.power import CachedWrite
from blockdev.simulation.sparse import SparseBytes
from tests.sim.disks import DiskPhoto, Photo

WRITE_S, FLUSH_S = 0.0002, 0.001
"""As long as a fast disk takes; without, nothing would ever be under way when the power goes."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A write, or a flush if `length` is 0. Trims and zeroes are writes of zeroes: `data` None."""

    member: int
    offset: int
    length: int
    data: bytes | None
    fua: bool

    @property
    def is_flush(self) -> bool:
        return not self.length


@dataclass(frozen=True, slots=True)
class Event:
    """An operation began, or ended, at a time of the monotonic clock."""

    at_s: float
    ended: bool
    operation: Operation


@dataclass
class Recording:
    """What was done to some members, all empty at first."""

    sizes: list[int]
    events: list[Event] = field(default_factory=list)

    def note(self, operation: Operation, *, ended: bool) -> None:
        self.events.append(Event(time.monotonic(), ended, operation))

    def promises(self) -> list[int]:
        """Behind which events something has just become durable."""
        return [
            index
            for index, event in enumerate(self.events)
            if event.ended and (event.operation.is_flush or event.operation.fua)
        ]


class RecordingDevice(MemoryDevice):
    """A member in memory that notes down what changes it."""

    def __init__(self, recording: Recording, member: int) -> None:
        super().__init__(recording.sizes[member])
        self._recording = recording
        self._member = member

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        content = memoryview(data).tobytes()
        operation = Operation(self._member, offset, len(content), content, fua)
        self._recording.note(operation, ended=False)
        super().try_write(offset, content)
        await self._end(operation, WRITE_S)

    async def write_zeroes(
        self, offset: int, length: int, *, fua: bool = False, no_hole: bool = False,
        fast: bool = False,
    ) -> None:  # fmt: skip
        operation = Operation(self._member, offset, length, None, fua)
        self._recording.note(operation, ended=False)
        await super().write_zeroes(offset, length)
        await self._end(operation, WRITE_S)

    async def flush(self) -> None:
        operation = Operation(self._member, 0, 0, None, False)
        self._recording.note(operation, ended=False)
        await self._end(operation, FLUSH_S)

    async def _end(self, operation: Operation, takes_s: float) -> None:
        # What has begun on a disk goes on, whoever waits for it.
        with trio.CancelScope(shield=True):
            await trio.sleep(takes_s)
        self._recording.note(operation, ended=True)

    def try_write(self, offset: int, data: Buffer) -> bool:
        return False


class Player:
    """Plays a recording up to any event, only ever forwards.

    Args:
        carries_out: one flush of so many is carried out: a disk that lies about the others.
    """

    def __init__(self, recording: Recording, *, carries_out: int = 1) -> None:
        self.recording = recording
        self.position = 0
        """Events played so far."""
        self._durable = [SparseBytes() for _ in recording.sizes]
        self._cached: list[dict[Operation, CachedWrite]] = [{} for _ in recording.sizes]
        self._ended: list[set[Operation]] = [set() for _ in recording.sizes]
        self._covered: dict[Operation, list[Operation]] = {}
        self._carries_out = carries_out
        self._flushes = 0

    def forward(self, events: int) -> None:
        """Go on until so many events are played."""
        assert events >= self.position
        for event in self.recording.events[self.position : events]:
            self._play(event)
        self.position = events

    def _play(self, event: Event) -> None:
        operation = event.operation
        cached, ended = self._cached[operation.member], self._ended[operation.member]
        if operation.is_flush and not event.ended:
            self._covered[operation] = [each for each in cached if each in ended]
        elif operation.is_flush:
            self._flush(operation.member, self._covered.pop(operation))
        elif not event.ended:
            cached[operation] = CachedWrite(
                self.position, operation.offset, operation.length, operation.data, certain=False
            )
        else:
            ended.add(operation)
            if operation.fua:
                cached[operation] = replace(cached[operation], certain=True)

    def _flush(self, member: int, covered: list[Operation]) -> None:
        self._flushes += 1
        if self._flushes % self._carries_out:
            return
        cached = self._cached[member]
        for operation in covered:
            if operation not in cached:
                continue  # another flush was quicker
            if operation.data is None:
                self._durable[member].zero(operation.offset, operation.length)
            else:
                self._durable[member].write(operation.offset, operation.data)
            del cached[operation]
            self._ended[member].discard(operation)

    def photo(self) -> Photo:
        """All members as they are now, what is not flushed apart."""
        return Photo(
            tuple(
                DiskPhoto(size, 4096, False, True, durable.copy(), tuple(cached.values()))
                for size, durable, cached in zip(
                    self.recording.sizes, self._durable, self._cached, strict=True
                )
            ),
            self.position,
        )

    @property
    def now_s(self) -> float:
        """When the last event was that was played."""
        return self.recording.events[self.position - 1].at_s
