"""Scrubs a segment of the log or of moved blocks, batch by batch, on every copy.

The segment itself says what it holds, so cold copies are read in order, at the speed of the
disks, and without the map. For a bad item the map is asked whether it is alive, and which volumes
read it. Bytes that a torn write or a failed member left behind the log are dead, and no damage.
"""

from collections.abc import Callable
from functools import partial

from storage.environment import Environment
from storage.format.checkpoint_root import LogPosition
from storage.format.commit import HEADER_BYTES, CommitHeader, LayerExtents, expand_extents
from storage.map.liveness import Liveness
from storage.members.roster import Roster
from storage.members.segments import Role, Segment
from storage.verify.affected import Affected
from storage.verify.examiner import PIECE_BYTES, Examiner, Known, Subject
from storage.verify.manifest import (
    HEADER_GRID_BYTES,
    Batch,
    Manifest,
    Piece,
    Place,
    add_batch,
    header_at,
    next_header,
    read_manifest,
)
from storage.verify.scrub_pass import GAPS_MAX, Gap


class SegmentScrub:
    """Walks segments for one pass.

    Args:
        replayed_from: returns the log position where replay would start now.
        durable_commit: returns the number of the newest durable commit.
    """

    def __init__(
        self, env: Environment, roster: Roster, examiner: Examiner, liveness: Liveness,
        affected: Affected, replayed_from: Callable[[], LogPosition],
        durable_commit: Callable[[], int],
    ):  # fmt: skip
        self._env = env
        self._roster = roster
        self._examiner = examiner
        self._liveness = liveness
        self._affected = affected
        self._replayed_from = replayed_from
        self._durable_commit = durable_commit

    async def run(self, segment: Segment) -> None:
        """Scrub one segment. Raises DeviceError when the pool fails."""
        if segment.role is Role.META:
            return  # it does not say what it holds: its pieces are read as the map names them
        place = Place(segment.number, self._roster.superblock.pool_uuid)
        # Bytes written from now on are not read: they may not be on all copies yet.
        end = segment.used_bytes
        at = last_number = 0
        while at + HEADER_BYTES <= end and self._examiner.is_live(segment):
            known: Known = {}
            manifest = await self._manifest(segment, place, at, end, known)
            if manifest is not None:
                await self._examine(segment, manifest, known)
                at, last_number = manifest.end, manifest.batches[-1].header.number
                continue
            if not self._examiner.copies(segment) or _is_over(segment, last_number):
                return
            found = await self._next_batch(segment, place, at + HEADER_GRID_BYTES, end)
            gap = Gap(segment.number, at, end if found is None else found)
            if len(self._examiner.scrub.gaps) < GAPS_MAX:
                self._examiner.scrub.gaps.append(gap)
            at = gap.end

    # -- manifests

    async def _manifest(
        self, segment: Segment, place: Place, at: int, end: int, known: Known
    ) -> Manifest | None:
        """The manifest of the batches at an offset, made of the first copy with a good header and
        table there; None if no copy has both. The bytes that were read go to `known`.
        """
        heads: list[tuple[CommitHeader, memoryview]] = []
        for copy in self._examiner.copies(segment):
            length = min(PIECE_BYTES, end - at)
            data = await self._examiner.read_copy(segment, copy, at, length)
            if data is None:
                continue
            known[copy[0].index] = data, None
            made: Manifest = await self._env.offload(partial(read_manifest, data, at, place, end))
            if made.batches:
                known[copy[0].index] = data, made
                return made
            header = header_at(data, at, place)
            if header is not None and at + header.total_bytes <= end:
                heads.append((header, data[:HEADER_BYTES]))
        # Else the table may be longer than the bytes read, or be good on another copy only.
        for header, head in heads:
            for copy in self._examiner.copies(segment):
                table = await self._examiner.read_copy(
                    segment, copy, at + HEADER_BYTES, header.table_bytes
                )
                made = Manifest()
                if table is not None and add_batch(made, header, head, table):
                    return made
        return None

    async def _next_batch(self, segment: Segment, place: Place, at: int, end: int) -> int | None:
        """Offset of the next batch with a good header on any copy, or None."""
        for start in range(at, end, PIECE_BYTES):
            if not self._examiner.is_live(segment):
                break
            found: list[int] = []
            for copy in self._examiner.copies(segment):
                length = min(PIECE_BYTES, end - start)
                data = await self._examiner.read_copy(segment, copy, start, length)
                if data is not None:
                    first = await self._env.offload(partial(next_header, data, start, place))
                    found += [] if first is None else [first]
            if found:
                return min(found)
        return None

    # -- examining

    async def _examine(self, segment: Segment, manifest: Manifest, known: Known) -> None:
        start = manifest.batches[0].start
        for piece in manifest.piece.cut(PIECE_BYTES):
            for item in await self._examiner.examine(segment, piece, known, start):
                await self._settle(segment, manifest, piece, item)

    async def _settle(self, segment: Segment, manifest: Manifest, piece: Piece, item: int) -> None:
        offset = piece.offsets[item]
        batch = manifest.batch_of(offset)
        if offset - batch.start > HEADER_BYTES:
            describe = partial(self._data, batch.extents_at(offset))
        else:
            describe = partial(self._head, batch)
        await self._examiner.settle(segment, piece, item, describe)

    async def _data(self, extents: list[LayerExtents]) -> Subject | None:
        """Describe an extent; None if no volume or snapshot reads it."""
        alive = await self._liveness.of(extents)
        holds = []
        for one in alive:
            holds += await self._affected.of_blocks(one.layer, one.blocks, one.a, one.b)
        if not alive:  # hints of descendants may still name the old places of moved blocks
            for each in extents:
                holds += await self._affected.of_blocks(each.layer, *expand_extents(each))
        return Subject("data", holds) if alive or holds else None

    async def _head(self, batch: Batch) -> Subject | None:
        """Describe a header or a record table; None if neither replay nor live blocks need it."""
        if self._is_replayed(batch):
            return Subject("log")
        return Subject("record table") if await self._liveness.of(batch.records.extents) else None

    def _is_replayed(self, batch: Batch) -> bool:
        """Whether opening the pool after a crash would need this batch."""
        number, lies_in = batch.header.number, batch.header.segment
        start = self._replayed_from()
        if not start.commit < number <= self._durable_commit():
            return False
        if lies_in < start.segment and lies_in != start.announced:
            return False  # the log had left the segment before
        jumps = self._roster.superblock.jumps
        return not any(jump.after_commit < number and lies_in < jump.segment for jump in jumps)


def _is_over(segment: Segment, last_number: int) -> bool:
    """Whether no batch has to follow: `used_bytes` of a segment may be more than it holds."""
    return segment.live_bytes == 0 or 0 < segment.last_commit <= last_number
