"""Writes metadata: pages, directories, tables and the root of a checkpoint.

Metadata lies in segments of its own, apart from the log: it dies at another pace, and its segments
need no announcement, because metadata counts only once a superblock leads to it. Pieces are aligned
to 64 bytes; each `finish` ends on the commit alignment, so that no physical block with flushed data
is written again (R15).
"""

from blockdev.errors import DeviceError
from storage.format import codec
from storage.format.codec import digest_of
from storage.format.entry import OFFSET_GRAIN_BYTES, pack_a, pack_b, unpack
from storage.members.segment_io import Failure, SegmentIO
from storage.members.segments import MemberFailedError, Role, Segment, SegmentTable, State

CHUNK_BYTES = 1 << 20
"""Bytes written at once, or a quarter of a segment when that is less."""

PIECE_BYTES_MAX = 64 << 10
"""Larger metadata is cut: an entry locates at most 64 KiB."""


class MetaWriteError(DeviceError):
    """Copies failed while metadata was written. No superblock names it yet: the attempt starts
    again."""

    def __init__(self, failures: list[Failure]):
        why = failures[0].error if failures else "a flush that failed meanwhile took it along"
        super().__init__(f"metadata write failed: {why}")
        self.failures = failures


class MetaWriter:
    """An append-only stream of metadata over segments of its own."""

    def __init__(self, segment_io: SegmentIO, table: SegmentTable, align: int):
        self.segment: Segment | None = None
        self.offset = 0
        """Where the next chunk is written; all bytes before it are on the members."""
        self.bytes_written = 0
        """Bytes written since the pool was opened."""
        self.commit = 0
        """The commit that is checkpointed; a member that is stale since an earlier commit lacks
        this metadata."""
        self._segment_io = segment_io
        self._table = table
        self._align = align
        self._chunk = bytearray()
        self._begun: list[Segment] = []
        """Segments begun since `keep`."""
        self.written: list[Segment] = []
        """Segments written to since `keep`."""
        self._kept: tuple[Segment | None, int] = (None, 0)

    def go_on(self, segment: int, offset: int) -> None:
        """Continue after the last checkpoint, in its segment."""
        self.segment = self._table[segment]
        self.segment.state = State.OPEN
        self.offset = offset
        self.keep()

    async def append(self, data: bytes) -> tuple[int, int]:
        """Store one piece of at most 64 KiB; returns its entry words.

        Raises:
            MetaWriteError: a copy failed.
            NoSpaceError: no segment is free.
        """
        kind, stored = codec.pack(data)
        segment = await self._room_for(len(stored))
        at = self.offset + len(self._chunk)
        self._chunk += stored
        self._chunk += bytes(-len(stored) % OFFSET_GRAIN_BYTES)
        if len(self._chunk) >= min(CHUNK_BYTES, self._table.segment_bytes // 4):
            await self._write()
        return pack_a(kind, segment.number, at), pack_b(len(stored), 1, digest_of(stored))

    async def fetch(self, a: int, b: int, plain_bytes_max: int) -> bytes:
        """Read a piece by its entry words, also one that is not written yet. Raises as
        `SegmentIO.read_located`."""
        at = unpack(a, b)
        start = at.offset - self.offset
        if self.segment is None or at.segment != self.segment.number or start < 0:
            return await self._segment_io.read_located(a, b, plain_bytes_max)
        return codec.expand(at.kind, self._chunk[start : start + at.stored_bytes], plain_bytes_max)

    async def append_long(self, data: bytes) -> list[tuple[int, int]]:
        """Store any number of bytes, cut into pieces; returns their entry words in order. Raises as
        `append`."""
        return [
            await self.append(data[start : start + PIECE_BYTES_MAX])
            for start in range(0, len(data), PIECE_BYTES_MAX)
        ]

    async def _room_for(self, stored_bytes: int) -> Segment:
        segment = self.segment
        if segment is not None and not self._table.is_degraded(segment):
            end = self.offset + len(self._chunk) + stored_bytes + self._align
            if end <= self._table.segment_bytes:
                return segment
        await self._write()
        if segment is not None:
            segment.state = State.SEALED
        try:
            self.segment = await self._table.allocate(role=Role.META)
        except MemberFailedError as failed:
            raise MetaWriteError([Failure(failed.member, failed)]) from failed
        self._begun.append(self.segment)
        self.offset = 0
        return self.segment

    async def _write(self) -> None:
        if not self._chunk:
            return
        assert self.segment is not None
        data = self._chunk
        data += bytes(-len(data) % self._align)
        self._chunk = bytearray()
        self.bytes_written += len(data)
        if self.segment not in self.written:
            self.written.append(self.segment)
        failures = await self._segment_io.write(self.segment, self.offset, data)
        self.offset += len(data)
        self.segment.used_bytes = self.offset
        self.segment.last_commit = max(self.segment.last_commit, self.commit)
        if failures:
            raise MetaWriteError(failures)

    async def finish(self) -> None:
        """Write the pieces that are still in memory; a flush then makes all pieces durable. Raises
        as `append`."""
        await self._write()

    def keep(self) -> None:
        """Keep everything written so far: the superblocks name it now."""
        self._kept = (self.segment, self.offset)
        self._begun = []
        self.written = []

    def abandon(self, *, maybe_named: bool) -> None:
        """Forget everything written since `keep`: no superblock names it; its space is free again.

        `maybe_named`: superblocks may have been written; then the metadata stays until a later
        checkpoint finds it dead.
        """
        self._chunk = bytearray()
        self.written = []
        if maybe_named:
            if self.segment is not None:
                self.segment.state = State.SEALED
            self.segment, self.offset = None, 0
            self._kept = (None, 0)
        else:
            for segment in self._begun:
                self._table.forget(segment)
            self.segment, self.offset = self._kept
            if self.segment is not None:
                self.segment.state = State.OPEN
        self._begun = []
