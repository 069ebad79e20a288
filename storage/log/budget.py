"""The space budget: bounds the memory of write buffers, and the space that their commits take.

A write is admitted only when the space for its commit is certain, so ENOSPC comes
before a write is accepted and never after. A hard reserve stays for metadata, deletes
and trims, which work on a full pool (R17).
"""

from collections.abc import Awaitable, Callable, Iterable

from storage.format.commit import HEADER_BYTES
from storage.format.entry import BLOCK_BYTES
from storage.log.buffer import WriteBuffer
from storage.members.segments import SegmentTable

BUFFER_BYTES_MAX = 4 << 20
"""The largest buffer, and so commit: large enough that the time of a flush and a seek is small
beside it, small enough to encode in 5 ms."""

BLOCK_COST_BYTES = BLOCK_BYTES + 64
"""A block with its share of the record table, at worst (24 bytes, or a zero range of 32)."""

COMMIT_COST_BYTES = 16 << 10
"""Header, paddings, alignment and a few operations."""

RESERVE_SEGMENTS_MIN = 6
RESERVE_FRACTION = 20
"""One segment in twenty, at least six, is never filled with live data: cleaning a pool
without spare room would cost without end, and checkpoints and deletes have to work (R17).
The segments that the cleaner emptied cool down in this reserve as well."""

META_FRACTION = 256
"""One segment in 256 is kept for a checkpoint that writes the whole map, 11 bytes a block."""

WRITER_SEGMENTS = 4
"""Writers wait for the cleaner when no more segments than these are free, besides those kept for
metadata: one for moved blocks, one for the log of the moves, one for a checkpoint, and one that may
just be full."""

CLEANER_SEGMENTS = 2
"""The cleaner leaves so many segments free: one for the log of its moves, one for a checkpoint."""

CREDIT_SEGMENTS = 2
"""Segments that writers may be ahead of the cleaner when space is short."""

FILL_MAX = 0.97
"""The part of a segment that stored blocks take at best, besides record tables and paddings."""

SMALL_BUFFER_BLOCKS = 16
"""Fewest blocks for which a buffer is sized to the rest of a segment: a commit costs 8 KiB."""

ROW_BYTES = 24
MOVE_BYTES = 40
"""Bytes of a row of a record table: for an extent, and for a move."""


class SpaceBudget:
    """Bounds the buffers in memory, and the space that writes may still take of the pool."""

    def __init__(
        self, table: SegmentTable, memory_bytes: int, make_room: Callable[[], Awaitable[None]]
    ):
        self.buffer_blocks_max = min(BUFFER_BYTES_MAX, table.segment_bytes // 4) // BLOCK_BYTES
        self.make_room = make_room
        """Frees space; raises NoSpaceError when live data fills the pool."""
        self.paused = False
        """Set while the log is too far ahead of the checkpoints."""
        self._table = table
        self._memory_bytes = max(memory_bytes, 2 * BUFFER_BYTES_MAX)
        self._memory_held = 0
        self.is_short: Callable[[], bool] = lambda: False
        """Whether writers have to keep to the pace at which the cleaner gains space."""
        self.is_reclaiming: Callable[[], bool] = lambda: False
        """Whether a background task is freeing space, and will wake the writers."""
        self._credit_bytes = CREDIT_SEGMENTS * table.segment_bytes
        self._outstanding = 0
        """Worst-case bytes of buffers that are not written yet."""
        self._unsettled = 0
        """Bytes of commits that are written and not durable yet; once durable, they are live."""

    @property
    def reserve_segments(self) -> int:
        """Segments that are never filled with live data."""
        return max(RESERVE_SEGMENTS_MIN, self._table.total_segments() // RESERVE_FRACTION)

    @property
    def writer_floor(self) -> int:
        """Free segments that clients may not take."""
        return WRITER_SEGMENTS + self._table.total_segments() // META_FRACTION

    @property
    def cleaner_floor(self) -> int:
        """Free segments that the cleaner may not take either."""
        return CLEANER_SEGMENTS + self._table.total_segments() // META_FRACTION

    @property
    def capacity_bytes(self) -> int:
        """Bytes of stored blocks that the pool can hold; compressed blocks count as compressed."""
        segments = max(0, self._table.total_segments() - self.reserve_segments)
        return int(segments * self._table.segment_bytes * FILL_MAX)

    @property
    def is_full(self) -> bool:
        """Whether live data leaves no space for a commit of one block. Live counts are upper bounds
        between checkpoints."""
        return self._live_soon() + self._worst(1) > self.capacity_bytes

    @property
    def has_room(self) -> bool:
        """Whether clients may write without waiting for space."""
        return self._table.free_segments() > self.writer_floor and not self.is_full

    def available_bytes(self, room_in_segment: int) -> int:
        """Bytes that commits may still take, given the bytes left in the open segment."""
        per_segment = self._table.segment_bytes - self._worst(self.buffer_blocks_max)
        free = self._table.free_segments() - self.writer_floor
        if free <= 0:
            return 0  # the rest of the open segment is for the moves that the cleaner logs
        placed = room_in_segment + free * per_segment - self._outstanding
        return max(0, min(placed, self.free_bytes()))

    def free_bytes(self) -> int:
        """Bytes that users may still write, as the pool's status shows."""
        return max(0, self.capacity_bytes - self._live_soon())

    def _live_soon(self) -> int:
        return self._table.live_bytes + self._outstanding + self._unsettled

    @property
    def is_paced(self) -> bool:
        """Whether writers wait for the cleaner to gain more space. Buffers in memory count as
        written: else writers could fill all of the memory on a credit of one byte."""
        return self._credit_bytes <= self._outstanding and self.is_short()

    @property
    def comes_back(self) -> bool:
        """Whether a writer does better to wait for space than to call `make_room`: `make_room`
        returns only when its step is done, mostly a checkpoint, though space came back at the
        beginning of it.
        """
        return not self.is_full and self.is_reclaiming()

    def gained(self, gain_bytes: int) -> None:
        """Credit writers with space that the cleaner gained."""
        self._change_credit(gain_bytes)

    def _change_credit(self, change_bytes: int) -> None:
        # Bounded: writers need not make up for bytes written while there was room.
        segment = self._table.segment_bytes
        changed = self._credit_bytes + change_bytes
        self._credit_bytes = max(-segment, min(CREDIT_SEGMENTS * segment, changed))

    def has_memory(self, unbounded: bool) -> bool:
        """Whether another buffer may be opened; always if `unbounded`."""
        return unbounded or (self._memory_held < self._memory_bytes and not self.paused)

    @property
    def busy(self) -> bool:
        """Whether buffers hold memory; their commits give it back, so waiting may help."""
        return self._memory_held > 0

    def grant(self, room_in_segment: int, unbounded: bool, queue: Iterable[WriteBuffer]) -> int:
        """Blocks that the next buffer may hold; 0 when it has to wait, or there is no space.

        Near the end of a segment the buffer is sized to the rest that the buffers in `queue` leave.
        """
        if not self.has_memory(unbounded):
            return 0
        if not unbounded and self.is_paced:
            return 0
        blocks = self.buffer_blocks_max
        fitting = _fitting(self._room_after(room_in_segment, queue))
        if SMALL_BUFFER_BLOCKS <= fitting < blocks:
            blocks = fitting
        available = self.available_bytes(room_in_segment)
        if self._worst(blocks) <= available:
            return blocks
        return max(0, min(blocks, (available - COMMIT_COST_BYTES) // BLOCK_COST_BYTES))

    def _room_after(self, room_in_segment: int, queue: Iterable[WriteBuffer]) -> int:
        for buffer in queue:
            size = _likely_bytes(buffer)
            if size > room_in_segment:
                room_in_segment = self._table.segment_bytes
            room_in_segment -= size
        return room_in_segment

    @staticmethod
    def _worst(blocks: int) -> int:
        return blocks * BLOCK_COST_BYTES + COMMIT_COST_BYTES

    def held(self, buffer: WriteBuffer) -> None:
        """Count the memory and the worst-case commit of a buffer that was opened."""
        self._memory_held += buffer.memory_bytes
        self.claim(buffer, self._worst(buffer.capacity))

    def claim(self, buffer: WriteBuffer, claim_bytes: int) -> None:
        """Raise the buffer's claim on the log by this many bytes."""
        buffer.claim_bytes += claim_bytes
        self._outstanding += claim_bytes

    def written(self, buffer: WriteBuffer, commit_bytes: int) -> None:
        """The buffer's commit is written: count its bytes in place of the buffer's claim."""
        self._outstanding -= buffer.claim_bytes
        self._unsettled += commit_bytes
        buffer.written_bytes = commit_bytes
        self._change_credit(-commit_bytes)

    def requeued(self, buffer: WriteBuffer) -> None:
        """The buffer's commit was lost and has to be written again: count the claim again."""
        self._outstanding += buffer.claim_bytes
        self._unsettled -= buffer.written_bytes
        buffer.written_bytes = 0

    def released(self, buffer: WriteBuffer) -> None:
        """The buffer is durable, or was empty: give back its memory."""
        self._memory_held -= buffer.memory_bytes
        self._unsettled -= buffer.written_bytes
        if buffer.empty:
            self._outstanding -= buffer.claim_bytes


def _likely_bytes(buffer: WriteBuffer) -> int:
    """Bytes of a buffer's commit if nothing compresses and all blocks are of one layer. An estimate
    only: sizes by the worst case, which buffers claim, would leave the last twentieth of each
    segment empty."""
    moves = sum(len(each.rows) for each in buffer.moves)
    table = HEADER_BYTES + ROW_BYTES * buffer.used + MOVE_BYTES * moves
    return -(-table // BLOCK_BYTES) * BLOCK_BYTES + buffer.used * BLOCK_BYTES


def _fitting(left_bytes: int) -> int:
    """Blocks of a commit of `left_bytes`, by the same estimate; the log needs two paddings."""
    return (left_bytes - HEADER_BYTES - 3 * BLOCK_BYTES) // (BLOCK_BYTES + ROW_BYTES)
