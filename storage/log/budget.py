"""How much may still be taken: memory for buffers, and room in the pool for what is in them.

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
"""One commit: large enough that a flush and a seek do not show, small enough to encode in 5 ms."""

BLOCK_COST_BYTES = BLOCK_BYTES + 64
"""A block with its share of the record table, at worst (24 bytes, or a zero range of 32)."""

COMMIT_COST_BYTES = 16 << 10
"""Header, paddings, alignment and a few operations."""

RESERVE_SEGMENTS_MIN = 6
RESERVE_FRACTION = 20
"""One segment in twenty, at least six, is never filled with data that is alive: cleaning
a pool without spare room would cost without end, and checkpoints and deletes have to work (R17).
What the cleaner emptied cools down there as well."""

META_FRACTION = 256
"""Of a checkpoint that writes the whole map, 11 bytes a block, this is what the segments hold."""

WRITER_SEGMENTS = 4
"""Writers wait for the cleaner when no more are free, metadata aside: it needs one for what it
moves, the log one for the moves, a checkpoint one, and one may just be full."""

CLEANER_SEGMENTS = 2
"""The cleaner does not take the last ones: the log of its moves may need one, and a checkpoint."""

CREDIT_SEGMENTS = 2
"""What writers may be ahead of the cleaner when space is short."""

FILL_MAX = 0.97
"""How much of a segment stored blocks take at best; the rest is record tables and paddings."""

SMALL_BUFFER_BLOCKS = 16
"""A buffer is made to fit what is left of a segment unless that is less: a commit costs 8 KiB."""

ROW_BYTES = 24
MOVE_BYTES = 40
"""Rows of a record table: an extent, and where one was moved to."""


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
        self.is_short: Callable[[], bool] = lambda: False
        """Whether writers have to go at the pace at which space comes back."""
        self.is_reclaiming: Callable[[], bool] = lambda: False
        """Whether space is being made anyway, and writers are told of it."""
        self._credit_bytes = CREDIT_SEGMENTS * table.segment_bytes
        self._outstanding = 0
        """Worst-case bytes of buffers that are not written yet."""
        self._unsettled = 0
        """Bytes of commits that have their place, and are not durable: they count as live then."""

    @property
    def reserve_segments(self) -> int:
        """Segments that are never filled."""
        return max(RESERVE_SEGMENTS_MIN, self._table.total_segments() // RESERVE_FRACTION)

    @property
    def writer_floor(self) -> int:
        """So many free segments are not for clients."""
        return WRITER_SEGMENTS + self._table.total_segments() // META_FRACTION

    @property
    def cleaner_floor(self) -> int:
        """So many free segments are not for the cleaner either."""
        return CLEANER_SEGMENTS + self._table.total_segments() // META_FRACTION

    @property
    def capacity_bytes(self) -> int:
        """How many bytes of stored blocks the pool takes; what is compressed counts so."""
        segments = max(0, self._table.total_segments() - self.reserve_segments)
        return int(segments * self._table.segment_bytes * FILL_MAX)

    @property
    def is_full(self) -> bool:
        """Whether live data fills the pool, but for less than a commit of one block; counts are
        upper bounds between checkpoints."""
        return self._live_soon() + self._worst(1) > self.capacity_bytes

    @property
    def has_room(self) -> bool:
        """Whether clients may write at once."""
        return self._table.free_segments() > self.writer_floor and not self.is_full

    def available_bytes(self, room_in_segment: int) -> int:
        """What commits may still take, given what is left of the open segment."""
        per_segment = self._table.segment_bytes - self._worst(self.buffer_blocks_max)
        free = self._table.free_segments() - self.writer_floor
        if free <= 0:
            return 0  # what is left of the open segment is for what the cleaner has to log
        placed = room_in_segment + free * per_segment - self._outstanding
        return max(0, min(placed, self.free_bytes()))

    def free_bytes(self) -> int:
        """What a user may still write, as told in the pool's status."""
        return max(0, self.capacity_bytes - self._live_soon())

    def _live_soon(self) -> int:
        return self._table.live_bytes + self._outstanding + self._unsettled

    @property
    def is_paced(self) -> bool:
        """Whether writers wait for the cleaner to net some more space. What is in memory counts as
        written: else all of that could be filled on the credit of one byte."""
        return self._credit_bytes <= self._outstanding and self.is_short()

    @property
    def comes_back(self) -> bool:
        """Whether to wait for space is better than to make some: who makes it himself goes on only
        when his step is done, a checkpoint mostly, though space came back at its beginning."""
        return not self.is_full and self.is_reclaiming()

    def gained(self, gain_bytes: int) -> None:
        """The cleaner netted so much space; writers may use as much."""
        self._change_credit(gain_bytes)

    def _change_credit(self, change_bytes: int) -> None:
        # Bounded: what was written while there was room is not to be made up for.
        segment = self._table.segment_bytes
        changed = self._credit_bytes + change_bytes
        self._credit_bytes = max(-segment, min(CREDIT_SEGMENTS * segment, changed))

    def has_memory(self, unbounded: bool) -> bool:
        """Whether another buffer may be opened."""
        return unbounded or (self._memory_held < self._memory_bytes and not self.paused)

    @property
    def busy(self) -> bool:
        """Whether buffers are on their way to the members; waiting for them may help."""
        return self._memory_held > 0

    def grant(self, room_in_segment: int, unbounded: bool, queue: Iterable[WriteBuffer]) -> int:
        """Blocks that the next buffer may hold; 0 when it has to wait, or there is no space.

        Near the end of a segment the buffer is made to fit what the buffers in `queue` leave of it.
        """
        if not self.has_memory(unbounded):
            return 0
        if not unbounded and self.is_paced:
            return 0
        blocks = self.buffer_blocks_max
        fitting = _fitting(self._left_behind(room_in_segment, queue))
        if SMALL_BUFFER_BLOCKS <= fitting < blocks:
            blocks = fitting
        available = self.available_bytes(room_in_segment)
        if self._worst(blocks) <= available:
            return blocks
        return max(0, min(blocks, (available - COMMIT_COST_BYTES) // BLOCK_COST_BYTES))

    def _left_behind(self, room_in_segment: int, queue: Iterable[WriteBuffer]) -> int:
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
        """A buffer was opened."""
        self._memory_held += buffer.memory_bytes
        self.claim(buffer, self._worst(buffer.capacity))

    def claim(self, buffer: WriteBuffer, claim_bytes: int) -> None:
        """It will take so much more of the log."""
        buffer.claim_bytes += claim_bytes
        self._outstanding += claim_bytes

    def written(self, buffer: WriteBuffer, commit_bytes: int) -> None:
        """Its commit has its place now; it is no longer a claim on free space."""
        self._outstanding -= buffer.claim_bytes
        self._unsettled += commit_bytes
        buffer.written_bytes = commit_bytes
        self._change_credit(-commit_bytes)

    def requeued(self, buffer: WriteBuffer) -> None:
        """Its place was lost; it has to be written again."""
        self._outstanding += buffer.claim_bytes
        self._unsettled -= buffer.written_bytes
        buffer.written_bytes = 0

    def released(self, buffer: WriteBuffer) -> None:
        """It is durable, or was empty: its memory is given back."""
        self._memory_held -= buffer.memory_bytes
        self._unsettled -= buffer.written_bytes
        if buffer.empty:
            self._outstanding -= buffer.claim_bytes


def _likely_bytes(buffer: WriteBuffer) -> int:
    """What its commit takes if nothing compresses and it is of one layer: no promise, unlike what
    it claims, by which the last twentieth of each segment would stay empty."""
    moves = sum(len(each.rows) for each in buffer.moves)
    table = HEADER_BYTES + ROW_BYTES * buffer.used + MOVE_BYTES * moves
    return -(-table // BLOCK_BYTES) * BLOCK_BYTES + buffer.used * BLOCK_BYTES


def _fitting(left_bytes: int) -> int:
    """Blocks of a commit that fills so much, likewise; the log needs two paddings."""
    return (left_bytes - HEADER_BYTES - 3 * BLOCK_BYTES) // (BLOCK_BYTES + ROW_BYTES)
