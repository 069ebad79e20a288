"""Moves blocks: stores them in other segments, then logs their new places.

Moved blocks lie apart from the commits of clients: they have lived longer already and will
live longer still. They are flushed on every copy before the commit that names them is
written (R13), and a move counts only if the block still is at its old place (R11). A failure
on the way leaves the blocks at their old places.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from blockdev.errors import DeviceError, NoSpaceError
from storage.cleaning.parcel import Parcel
from storage.format import commit
from storage.format.commit import (
    HEADER_BYTES,
    MOVE_COUNT_SHIFT,
    CommitHeader,
    LayerMoves,
    Placed,
)
from storage.format.entry import BLOCK_BYTES, INDEX_STEP, OFFSET_GRAIN_BYTES, RAW
from storage.log import encode
from storage.log.encoded import EncodedCommit, EncodedLayer
from storage.log.intake import Intake
from storage.members.roster import Roster
from storage.members.segment_io import Failure, SegmentIO
from storage.members.segments import (
    UNNAMED,
    MemberFailedError,
    Role,
    Segment,
    SegmentTable,
    State,
)

log = logging.getLogger("cenote.storage")

BATCH_BYTES = 4 << 20
"""Largest batch, written at once; as large as the commits of clients."""

ROWS_MAX = 8192
"""Moves in one commit, 320 KiB of table."""


class MoveFailedError(DeviceError):
    """Copies failed while blocks were moved; the blocks stay at their old places."""

    def __init__(self, failures: list[Failure]):
        super().__init__(f"blocks could not be moved: {failures[0].error if failures else '-'}")
        self.failures = failures


@dataclass(slots=True)
class Outlet:
    """The segment that takes moved blocks of one role; None until it is needed."""

    role: Role
    segment: Segment | None = None
    losses: dict[int, int] = field(default_factory=dict)
    """`losses` of each member when it was first written to since the last flush."""


class Mover:
    """Stores moved blocks and logs their moves."""

    def __init__(
        self, segment_io: SegmentIO, table: SegmentTable, roster: Roster, intake: Intake,
        durable_commit: Callable[[], int],
    ):  # fmt: skip
        self.bytes_written = 0
        """Bytes written to segments since the pool was opened, headers and tables included."""
        self._segment_io = segment_io
        self._table = table
        self._roster = roster
        self._intake = intake
        self.durable_commit = durable_commit
        self._outlets = {role: Outlet(role) for role in (Role.MOVED, Role.SETTLED)}
        self._rows: dict[int, list[tuple[int, int, int, int, int]]] = {}
        self._written: dict[int, Segment] = {}

    @property
    def segments(self) -> set[int]:
        """Numbers of the segments that are being filled."""
        return {o.segment.number for o in self._outlets.values() if o.segment is not None}

    async def put(
        self, parcels: list[Parcel], role: Role, slots_kept: int, *, mixed: bool = False
    ) -> None:
        """Store parcels; `finish` logs their places. At least `slots_kept` segments are left free.

        With `mixed`, they go to the segment of the other role if there is none left for theirs.

        Raises:
            NoSpaceError: no segment is left; some of the parcels may be stored.
            MoveFailedError: a copy failed.
        """
        outlet = self._outlets[role]
        while parcels:
            try:
                segment = await self._room(outlet, slots_kept)
            except NoSpaceError:
                if not mixed:
                    raise
                [outlet] = [other for other in self._outlets.values() if other is not outlet]
                segment = await self._room(outlet, slots_kept)
            room = self._table.segment_bytes - segment.used_bytes
            count = self._fitting(parcels, min(room, BATCH_BYTES))
            if not count:
                self._leave(outlet)
                continue
            await self._write(outlet, segment, parcels[:count])
            parcels = parcels[count:]

    async def _room(self, outlet: Outlet, slots_kept: int) -> Segment:
        segment = outlet.segment
        if segment is not None and self._table.is_degraded(segment):
            self._leave(outlet)
            segment = None
        if segment is None:
            if self._table.free_segments() <= slots_kept:
                raise NoSpaceError("no segment is free for moved blocks")
            try:
                segment = await self._table.allocate(announced_in=UNNAMED, role=outlet.role)
            except MemberFailedError as failed:
                raise MoveFailedError([Failure(failed.member, failed)]) from failed
            segment.last_commit = UNNAMED
            outlet.segment = segment
        return segment

    def _leave(self, outlet: Outlet) -> None:
        """Seal the segment being filled; checkpoints free it when nothing in it is alive."""
        if outlet.segment is not None:
            outlet.segment.state = State.SEALED
        outlet.segment = None

    def _fitting(self, parcels: list[Parcel], room: int) -> int:
        """The number of parcels that one batch of at most `room` bytes holds in the worst case."""
        align = self._roster.superblock.commit_align
        used = HEADER_BYTES + 16 + OFFSET_GRAIN_BYTES + BLOCK_BYTES + align
        layer = parcels[0].layer
        for i, parcel in enumerate(parcels):
            used += 24 + 16 * (parcel.layer != layer)
            used += -(-len(parcel.stored) // OFFSET_GRAIN_BYTES) * OFFSET_GRAIN_BYTES
            layer = parcel.layer
            if used > room:
                return i
        return len(parcels)

    async def _write(self, outlet: Outlet, segment: Segment, parcels: list[Parcel]) -> None:
        sb = self._roster.superblock
        header = CommitHeader(
            sb.pool_uuid, 0, segment.number, segment.used_bytes, 0, 0, sb.epoch, 0, 0, 0
        )
        placed = encode.place(_encoded(parcels), header, sb.commit_align, magic=commit.MOVED_MAGIC)
        for member, _ in segment.places:
            outlet.losses.setdefault(member.index, member.losses)
        # No commit names the batch yet; until one does, the segment must not be taken for dead.
        segment.last_commit = UNNAMED
        failures = await self._segment_io.write(segment, segment.used_bytes, placed.data)
        segment.used_bytes += len(placed.data)
        self._written[segment.number] = segment
        self.bytes_written += len(placed.data)
        if failures:
            raise MoveFailedError(failures)
        at = iter(parcels)
        for extents in placed.records.extents:
            rows = self._rows.setdefault(extents.layer, [])
            for a, b in zip(extents.a.tolist(), extents.b.tolist(), strict=True):
                rows += _rows_of(next(at), a, b)

    async def finish(self) -> None:
        """Flush the stored blocks, log the moves, and wait until they are durable.

        Raises:
            MoveFailedError: a copy failed.
            DeviceError: the pool failed.
        """
        if not self._rows:
            return
        await self._flush()
        placed = [Placed(s.number, s.used_bytes, s.copies) for s in self._written.values()]
        all_rows = [(layer, row) for layer, rows in self._rows.items() for row in rows]
        written = list(self._written.values())
        self._rows, self._written = {}, {}
        most = min(ROWS_MAX, self._table.segment_bytes // 160)
        for start in range(0, len(all_rows), most):
            buffer = self._intake.put_moves(_by_layer(all_rows[start : start + most]), placed)
            await buffer.done.wait()
            if buffer.error is not None:
                raise buffer.error
        # Only after the last commit: before that, a segment may seem dead that the next of these
        # commits names.
        for segment in written:
            segment.last_commit = self.durable_commit()

    async def _flush(self) -> None:
        losses: dict[int, int] = {}
        for outlet in self._outlets.values():
            for index, known in outlet.losses.items():
                losses[index] = min(known, losses.get(index, known))
            outlet.losses = {}
        members = [m for m in self._roster.in_sync() if m.index in losses]
        failures = await self._segment_io.flush(members)
        for member in members:
            if member.losses != losses[member.index] and not failures:
                failures.append(Failure(member, DeviceError("an earlier flush failed")))
        if failures or any(self._table.is_degraded(s) for s in self._written.values()):
            raise MoveFailedError(failures)

    async def give_up(self, failures: list[Failure]) -> None:
        """Forget blocks that are stored and not logged; the failed members become stale (R5)."""
        durable = self.durable_commit()
        self._rows = {}
        for segment in self._written.values():
            segment.last_commit = durable
            segment.announced_in = min(segment.announced_in, durable)
        self._written = {}
        for outlet in self._outlets.values():
            self._leave(outlet)
            outlet.losses = {}
        for failure in failures:
            self._roster.fail(failure.member, durable, failure.error)
        if failures:
            await self._roster.publish()

    def rest(self) -> None:
        """Seal unfinished segments in which nothing is alive, so that checkpoints free them."""
        for outlet in self._outlets.values():
            if outlet.segment is not None and not outlet.segment.live_bytes:
                self._leave(outlet)


def _encoded(parcels: list[Parcel]) -> EncodedCommit:
    layers: list[EncodedLayer] = []
    packed: list[bytes | memoryview] = []
    raw: list[memoryview] = []
    packed_bytes = 0
    for parcel in parcels:
        if not layers or layers[-1].layer != parcel.layer:
            layers.append(EncodedLayer(parcel.layer))
        if parcel.kind == RAW:
            offset = len(raw) * BLOCK_BYTES
            raw.append(memoryview(parcel.stored))
        else:
            offset = packed_bytes
            padding = -len(parcel.stored) % OFFSET_GRAIN_BYTES
            packed += (parcel.stored, bytes(padding))
            packed_bytes += len(parcel.stored) + padding
        layers[-1].add(parcel.block, parcel.kind, offset, parcel.stored, parcel.blocks)
    return EncodedCommit(layers, [], packed, packed_bytes, raw)


def _rows_of(parcel: Parcel, a: int, b: int) -> list[tuple[int, int, int, int, int]]:
    """The moves of one stored extent as rows of `LayerMoves`, one for each item of `olds`."""
    rows = []
    index = 0
    for count, old_a, old_b in parcel.olds:
        head = parcel.block + index | count << MOVE_COUNT_SHIFT
        rows.append((head, old_a, old_b, a, b + index * INDEX_STEP))
        index += count
    return rows


def _by_layer(rows: list[tuple[int, tuple[int, int, int, int, int]]]) -> list[LayerMoves]:
    by_layer: dict[int, list[tuple[int, int, int, int, int]]] = {}
    for layer, row in rows:
        by_layer.setdefault(layer, []).append(row)
    return [LayerMoves(layer, np.array(each, dtype=np.uint64)) for layer, each in by_layer.items()]
