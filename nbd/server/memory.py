"""Memory that a server holds for its clients: one bound over all of them, and reused buffers.

Each connection is bounded too (`Limits.bytes_in_flight_max`), but hundreds of
connections together would not fit. While the memory is full, the server reads from no
client that needs more, until other clients give memory back. A client that holds memory
and is inactive (half a payload sent, replies not read) is dropped when other clients
waited for it too long, and only then: a guest that is paused for a day keeps its connection.
"""

import mmap
from dataclasses import dataclass, field
from typing import Protocol

import trio
from typing_extensions import Buffer

_MEMORY_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

SPARE_BYTES_MAX = 64 << 20
"""Buffers kept for the next large payloads: two of the longest, or 64 of 1 MiB. New ones cost
a page fault for every 4 KiB."""


class Holder(Protocol):
    """A connection that holds memory."""

    held_bytes: int
    """Memory that it holds."""

    def moved_bytes(self) -> int:
        """Bytes received and sent so far; rises while the client is active."""

    def is_awaited(self) -> bool:
        """Whether the server holds the memory until the client sends or receives more."""

    def drop(self, reason: str) -> None:
        """Close the connection soon and give all its memory back."""


@dataclass(slots=True)
class Memory:
    """Counts the memory that one server holds for its clients.

    Args:
        bytes_max: requests wait while this much is held; one request or payload may exceed it.
        patience_s: how long clients wait before an inactive client that holds memory is dropped.
    """

    bytes_max: int
    patience_s: float
    used_bytes: int = 0
    _holders: dict[int, Holder] = field(default_factory=dict)
    _room: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _watch: tuple[float, list[tuple[Holder, int]]] | None = None
    """While full: when patience ends, and each holder's `moved_bytes` when it began."""
    _spares: dict[int, list[memoryview]] = field(default_factory=dict)
    _spare_bytes: int = 0

    def is_full(self) -> bool:
        """Whether the next request must wait."""
        return self.used_bytes >= self.bytes_max

    def take(self, holder: Holder, size: int) -> None:
        """Count `size` bytes as held."""
        if size:
            self._holders[id(holder)] = holder
            holder.held_bytes += size
            self.used_bytes += size

    def give(self, holder: Holder, size: int) -> None:
        """Count `size` bytes as free again."""
        if not size:
            return
        holder.held_bytes -= size
        self.used_bytes -= size
        if not holder.held_bytes:
            del self._holders[id(holder)]
        if not self.is_full():
            self._watch = None
            self._room.unpark_all()

    async def wait_for_room(self, timeout_s: float) -> None:
        """Wait for free memory, at most `timeout_s`; drop inactive holders after `patience_s`."""
        if self._watch is None:
            moved = [(holder, holder.moved_bytes()) for holder in self._holders.values()]
            self._watch = trio.current_time() + self.patience_s, moved
        with trio.move_on_after(timeout_s):
            await self._room.park()
        if self._watch is None or trio.current_time() < self._watch[0]:
            return
        (_, before), self._watch = self._watch, None
        for holder, moved_before in before:
            stands_still = holder.moved_bytes() == moved_before
            if holder.held_bytes and holder.is_awaited() and stands_still:
                holder.drop("holds memory that others need, and does not go on")

    def buffer(self, length: int) -> memoryview:
        """Return a buffer of `length` bytes of any content; `recycle` it when no longer in use."""
        size = 1 << (length - 1).bit_length()
        spares = self._spares.get(size)
        if spares:
            self._spare_bytes -= size
            return spares.pop()[:length]
        # Its pages take memory only once bytes are received into them.
        return memoryview(mmap.mmap(-1, size, flags=_MEMORY_FLAGS))[:length]

    def recycle(self, buffer: Buffer) -> None:
        """Take back a buffer that `buffer` returned; do nothing with any other object."""
        if not isinstance(buffer, memoryview) or not isinstance(buffer.obj, mmap.mmap):
            return
        whole = memoryview(buffer.obj)
        if self._spare_bytes + len(whole) <= SPARE_BYTES_MAX:
            self._spare_bytes += len(whole)
            self._spares.setdefault(len(whole), []).append(whole)
