"""How much may still be taken: memory for buffers, and room in the pool for what is in them.

A write is admitted only when the space for its commit is certain, so ENOSPC comes
before a write is accepted and never after. A hard reserve stays for metadata, deletes
and trims, which work on a full pool (R17).
"""

from collections.abc import Awaitable, Callable

from storage.buffer import WriteBuffer
from storage.entry import BLOCK_BYTES
from storage.segments import SegmentTable

BUFFER_BYTES_MAX = 4 << 20
"""One commit: large enough that a flush and a seek do not show, small enough to encode in 5 ms."""

BLOCK_COST_BYTES = BLOCK_BYTES + 64
"""A block with its share of the record table, at worst (24 bytes, or a zero range of 32)."""

COMMIT_COST_BYTES = 16 << 10
"""Header, paddings, alignment and a few operations."""

RESERVE_SEGMENTS_MIN = 3
RESERVE_FRACTION = 50
"""One segment in fifty, at least three: a checkpoint's metadata and the log of deletes."""

SMALL_BUFFER_BLOCKS = 32


class SpaceBudget:
    """The bounds on what waits in memory, and on what the pool can still store."""

    def __init__(
        self, table: SegmentTable, memory_bytes: int, make_room: Callable[[], Awaitable[None]]
    ):
        self.buffer_blocks_max = min(BUFFER_BYTES_MAX, table.segment_bytes // 4) // BLOCK_BYTES
        self.make_room = make_room
        """Frees what can be freed; raises NoSpaceError when that was nothing."""
        self.paused = False
        """Set while the log is too far ahead of the checkpoints."""
        self._table = table
        self._memory_bytes = max(memory_bytes, 2 * BUFFER_BYTES_MAX)
        self._memory_held = 0
        self._outstanding = 0
        """Worst-case bytes of buffers that are not written yet."""
        total = sum(m.slots for m in table.members if m) // table.copies
        self.reserve_segments = max(RESERVE_SEGMENTS_MIN, total // RESERVE_FRACTION)

    def available_bytes(self, room_in_segment: int) -> int:
        """What commits may still take, given what is left of the open segment."""
        per_segment = self._table.segment_bytes - self._worst(self.buffer_blocks_max)
        free = max(0, self._table.free_segments() - self.reserve_segments)
        return max(0, room_in_segment + free * per_segment - self._outstanding)

    def free_bytes(self) -> int:
        """What a user may still write, as told in the pool's status."""
        free = max(0, self._table.free_segments() - self.reserve_segments)
        return free * self._table.segment_bytes

    def has_memory(self, unbounded: bool) -> bool:
        """Whether another buffer may be opened."""
        return unbounded or (self._memory_held < self._memory_bytes and not self.paused)

    @property
    def busy(self) -> bool:
        """Whether buffers are on their way to the members; waiting for them may help."""
        return self._memory_held > 0

    def grant(self, room_in_segment: int, unbounded: bool) -> int:
        """Blocks that the next buffer may hold; 0 when it has to wait, or there is no space.

        Near the end of a segment the buffer is made to fit what is left of it.
        """
        if not self.has_memory(unbounded):
            return 0
        blocks = self.buffer_blocks_max
        left = (room_in_segment - self._outstanding - COMMIT_COST_BYTES) // BLOCK_COST_BYTES
        if SMALL_BUFFER_BLOCKS <= left < blocks:
            blocks = left
        if self._worst(blocks) <= self.available_bytes(room_in_segment):
            return blocks
        return max(0, min(left, blocks))

    @staticmethod
    def _worst(blocks: int) -> int:
        return blocks * BLOCK_COST_BYTES + COMMIT_COST_BYTES

    def held(self, buffer: WriteBuffer) -> None:
        """A buffer was opened."""
        self._memory_held += buffer.memory_bytes
        self._outstanding += self._worst(buffer.capacity)

    def written(self, buffer: WriteBuffer) -> None:
        """Its commit has its place now; it is no longer a claim on free space."""
        self._outstanding -= self._worst(buffer.capacity)

    def requeued(self, buffer: WriteBuffer) -> None:
        """Its place was lost; it has to be written again."""
        self._outstanding += self._worst(buffer.capacity)

    def released(self, buffer: WriteBuffer) -> None:
        """It is durable, or was empty: its memory is given back."""
        self._memory_held -= buffer.memory_bytes
        if buffer.empty:
            self._outstanding -= self._worst(buffer.capacity)
