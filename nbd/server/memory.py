"""Memory that clients make a server hold: a bound over all of them, and buffers used again.

A connection by itself is bounded too (`Limits.bytes_in_flight_max`), but hundreds of
them together would not fit. Who finds the memory taken waits, unread, until others
give some back. A client that holds memory because it itself does not go on (half a
payload sent, replies not read) is dropped when others had to wait for it too long,
and only then: a guest that is paused for a day keeps its connection.
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
    """How much it holds."""

    def moved_bytes(self) -> int:
        """Bytes that went in or out so far; rises while the client goes on."""

    def is_awaited(self) -> bool:
        """Whether the memory is held because of what the client has yet to do."""

    def drop(self, reason: str) -> None:
        """Close the connection soon and give everything back."""


@dataclass(slots=True)
class Memory:
    """What one server may hold for its clients.

    Args:
        bytes_max: waits begin beyond this; exceeded by at most one request or payload.
        patience_s: how long others wait before a client that does not go on is dropped.
    """

    bytes_max: int
    patience_s: float
    used_bytes: int = 0
    _holders: dict[int, Holder] = field(default_factory=dict)
    _room: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _watch: tuple[float, list[tuple[Holder, int]]] | None = None
    """While full: when patience ends, and how far each holder was when it began."""
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
        """Wait so long at most until memory is free; drop who holds it without going on."""
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
        """Return room for `length` bytes, of any content; `recycle` it when nobody looks at it."""
        size = 1 << (length - 1).bit_length()
        spares = self._spares.get(size)
        if spares:
            self._spare_bytes -= size
            return spares.pop()[:length]
        # Its pages exist only once something is received into them.
        return memoryview(mmap.mmap(-1, size, flags=_MEMORY_FLAGS))[:length]

    def recycle(self, buffer: Buffer) -> None:
        """Take back what `buffer` returned; anything else is left to itself."""
        if not isinstance(buffer, memoryview) or not isinstance(buffer.obj, mmap.mmap):
            return
        whole = memoryview(buffer.obj)
        if self._spare_bytes + len(whole) <= SPARE_BYTES_MAX:
            self._spare_bytes += len(whole)
            self._spares.setdefault(len(whole), []).append(whole)
