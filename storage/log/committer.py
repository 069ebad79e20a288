"""The committer: writes sealed buffers to the log as commits, and makes the commits durable.

One task, the committer, does all of it (R1); clients only wait for the outcome, and cancelling one
does not affect its commit. Sealed buffers are encoded, placed one after another and written to
every copy; one flush makes all of them durable, for all waiting clients. Buffers are kept until
then, so commits that a failed copy or a failed flush loses can be written again elsewhere (R4).

When a copy fails, the log leaves the segment: a new one is taken on members in sync, a superblock
on all of them records which members are stale and where the log goes on (R5), and the commits that
were not durable are written there again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage.environment import Environment
from storage.format.checkpoint_root import LogPosition
from storage.format.commit import CommitHeader, Records
from storage.format.superblock import JUMPS_MAX, Jump
from storage.log import encode
from storage.log.budget import SpaceBudget
from storage.log.buffer import WriteBuffer
from storage.log.encoded import EncodedCommit, PlacedCommit
from storage.log.intake import Intake
from storage.members.roster import Roster
from storage.members.segment_io import Failure, SegmentIO, only_full
from storage.members.segments import MemberFailedError, Segment, SegmentTable, State

log = logging.getLogger("cenote.storage")

FLUSH_BYTES = 16 << 20
"""Bytes written and not flushed at which the committer flushes unasked, so that memory is freed."""

ENCODE_INLINE_BLOCKS = 16
"""Buffers of up to so many blocks are encoded in line: 16 blocks take 0.1 ms, a thread as much."""

RELOCATIONS_MAX = 4
"""Relocations in a row without a durable commit; then the pool gives up, or it might never end."""

STALL_RETRY_S = 0.5


class CopyFailed(Exception):
    """Copies of a commit could not be written or flushed; the log must relocate."""

    def __init__(self, failures: list[Failure]):
        super().__init__(str(failures))
        self.failures = failures


@dataclass(slots=True)
class Written:
    """A commit that is written and not durable yet. `buffer` is None for an announcement."""

    position: LogPosition
    records: Records
    buffer: WriteBuffer | None


class Log:
    """Appends, group commits and flushes; see the module."""

    def __init__(
        self, env: Environment, table: SegmentTable, segment_io: SegmentIO, roster: Roster,
        space: SpaceBudget, start: LogPosition, on_durable: Callable[[Written], None],
    ):  # fmt: skip
        self.durable = start
        """The log is durable up to this position."""
        self.commits = 0
        self.bytes_written = 0
        """Commits and bytes written since this log was opened."""
        self.intake = Intake(space, self._room_in_segment, self._sealed)
        self._end = start
        self._env = env
        self._table = table
        self._segment_io = segment_io
        self._roster = roster
        self._space = space
        self._on_durable = on_durable
        self._segment: Segment = table[start.announced or start.segment]
        self._retained: list[Written] = []
        self._retained_bytes = 0
        self._losses: dict[int, int] = {}
        """The `losses` of each member, by index, at its first write since the last flush."""
        self._relocations = 0
        self._nursery: trio.Nursery | None = None
        if start.announced:
            begun = replace(start, segment=start.announced, offset=0, announced=0)
            self._end = self.durable = begun

    # -- the committer

    def _room_in_segment(self) -> int:
        return self._table.segment_bytes - self._end.offset

    def _sealed(self, buffer: WriteBuffer) -> None:
        if buffer.used > ENCODE_INLINE_BLOCKS and self._nursery is not None:
            buffer.encoding = trio.Event()
            self._nursery.start_soon(self._encode_ahead, buffer)

    async def run(self) -> None:
        """Commit for ever; the pool's nursery runs this, and nothing else cancels it. When it
        ends, every waiter gets an error."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._commit()
                finally:
                    # Other tasks of the pool may still run for a moment, and seal a buffer.
                    self._nursery = None
        finally:
            self.intake.leave()

    async def _commit(self) -> None:
        while self.intake.failure is None:
            await self.intake.kick.wait()
            self.intake.kick = trio.Event()
            await self._work()

    async def _work(self) -> None:
        try:
            while self.intake.queue or self._must_flush():
                try:
                    await self._drain()
                    self.intake.stalled = None
                except CopyFailed as failed:
                    await self._relocate(failed.failures)
                except MemberFailedError as failed:
                    await self._relocate([Failure(failed.member, failed)])
        except NoSpaceError as error:
            if self.intake.stalled is None:
                log.error("commits wait for space: %s", error)
            self.intake.stalled = error
            self.intake.pulse()
            await trio.sleep(STALL_RETRY_S)
            await self._table.ask_full_again()
            self.intake.kick.set()
        except DeviceError as error:
            self.die(error)

    async def _drain(self) -> None:
        while self.intake.queue:
            buffer = self.intake.queue[0]
            encoded = await self._encoded(buffer)
            # The only commit, and a task waits: one FUA write instead of a write and a flush.
            fua = buffer.wanted and len(self.intake.queue) == 1 and not self._retained
            placed = await self._append(encoded, fua=fua)
            self.intake.queue.popleft()
            self._space.written(buffer, placed.header.total_bytes)
            self._retain(placed, buffer)
            if fua and len(self._retained) == 1:
                self._losses.clear()
                self._settle()
            elif self._retained_bytes >= FLUSH_BYTES:
                break
        if self._must_flush():
            await self._make_durable()

    def _must_flush(self) -> bool:
        if not self._retained:
            return False
        return (
            self.intake.starved
            or self._retained_bytes >= FLUSH_BYTES
            or any(w.buffer is not None and w.buffer.wanted for w in self._retained)
        )

    async def _encoded(self, buffer: WriteBuffer) -> EncodedCommit:
        if buffer.encoding is not None:
            await buffer.encoding.wait()
        if buffer.encoded is None:
            buffer.encoded = encode.encode(buffer)
        return buffer.encoded

    async def _encode_ahead(self, buffer: WriteBuffer) -> None:
        assert buffer.encoding is not None
        try:
            buffer.encoded = await self._env.offload(lambda: encode.encode(buffer))
        finally:
            buffer.encoding.set()

    async def _append(self, encoded: EncodedCommit, *, fua: bool) -> PlacedCommit:
        if self._table.is_degraded(self._segment):
            raise CopyFailed([])
        align = self._roster.superblock.commit_align
        # One alignment stays free at the end for the commit that announces the next segment.
        if self._end.offset + encoded.placed_bytes_max(align) + align > self._table.segment_bytes:
            await self._roll()
            fua = False
        placed = encode.place(encoded, self._next_header(), align)
        await self._write(placed, fua=fua)
        return placed

    async def _roll(self) -> None:
        """Announce a new segment and go on in it (R14)."""
        number = self._end.commit + 1
        segment = await self._table.allocate(announced_in=number)
        nothing = EncodedCommit([], [], [], 0, [])
        announcement = ((segment.number, segment.copies),)
        align = self._roster.superblock.commit_align
        placed = encode.place(nothing, self._next_header(), align, announcement)
        try:
            await self._write(placed, fua=False)
        except (CopyFailed, NoSpaceError):
            self._abandon(segment)
            raise
        self._segment.state = State.SEALED
        self._segment = segment
        self._end = replace(self._end, segment=segment.number, offset=0)
        self._retain(placed, None)

    def _next_header(self) -> CommitHeader:
        sb = self._roster.superblock
        return CommitHeader(
            sb.pool_uuid, self._end.commit + 1, self._segment.number, self._end.offset, 0, 0,
            sb.epoch, self.durable.commit, self._end.checksum, 0,
        )  # fmt: skip

    async def _write(self, placed: PlacedCommit, *, fua: bool) -> None:
        for member, _ in self._segment.places:
            self._losses.setdefault(member.index, member.losses)
        failures = await self._segment_io.write(
            self._segment, placed.header.offset, placed.data, fua=fua
        )
        if failures:
            if only_full(failures):
                raise NoSpaceError(f"no space below a member: {failures[0].error}")
            raise CopyFailed(failures)
        header = placed.header
        self._end = LogPosition(
            header.number, header.checksum, header.segment, header.offset + header.total_bytes
        )
        self._segment.used_bytes = self._end.offset
        self._segment.last_commit = header.number
        self.commits += 1
        self.bytes_written += header.total_bytes

    def _retain(self, placed: PlacedCommit, buffer: WriteBuffer | None) -> None:
        self._retained.append(Written(self._end, placed.records, buffer))
        self._retained_bytes += placed.header.total_bytes

    async def _make_durable(self) -> None:
        members = [m for m in self._roster.in_sync() if m.index in self._losses]
        failures = await self._segment_io.flush(members)
        for member in members:
            if member.losses != self._losses[member.index] and not failures:
                failures.append(Failure(member, DeviceError("an earlier flush failed")))
        if failures or any(self._table.is_degraded(s) for s in self._unflushed_segments()):
            raise CopyFailed(failures)
        self._losses.clear()
        self._settle()

    def _unflushed_segments(self) -> set[Segment]:
        return {self._table[w.position.segment] for w in self._retained} | {self._segment}

    def _settle(self) -> None:
        """Apply the written commits, which are all durable now, to the map; wake their waiters."""
        settled = 0
        try:
            for written in self._retained:
                self.durable = written.position
                self._on_durable(written)
                if written.buffer is not None:
                    self._space.released(written.buffer)
                    written.buffer.done.set()
                settled += 1
        finally:  # if the map refuses a commit, it stays retained, and `die` fails its waiters
            del self._retained[:settled]
        self._retained_bytes = 0
        self._relocations = 0
        self.intake.starved = False
        self.intake.pulse()

    # -- failures

    async def _relocate(self, failures: list[Failure]) -> None:
        """Go on in a new segment on members in sync, from the last durable commit (R4, R5)."""
        self._relocations += 1
        if self._relocations > RELOCATIONS_MAX:
            raise failures[0].error if failures else DeviceError("copies fail again and again")
        for failure in failures:
            self._roster.fail(failure.member, self.durable.commit, failure.error)
        segment = await self._take_segment()
        jump = Jump(self.durable.commit, self.durable.checksum, segment.number, segment.copies)
        durable = self.durable.commit
        await self._roster.publish(
            lambda sb: replace(sb, jumps=with_jump(sb.jumps, jump), durable_commit=durable)
        )
        log.warning(
            "log goes on elsewhere: after_commit=%d segment=%d", jump.after_commit, segment.number
        )
        for abandoned in self._unflushed_segments():
            self._abandon(abandoned)
        again = [w.buffer for w in self._retained if w.buffer is not None]
        for buffer in again:
            self._space.requeued(buffer)
        self.intake.queue.extendleft(reversed(again))
        self._retained = []
        self._retained_bytes = 0
        self._losses.clear()
        self._segment = segment
        self._end = self.durable = LogPosition(
            self.durable.commit, self.durable.checksum, segment.number, 0
        )

    async def _take_segment(self) -> Segment:
        """Allocate a segment to go on in; members that fail to give one are marked as failed."""
        while True:
            try:
                return await self._table.allocate(announced_in=self.durable.commit)
            except MemberFailedError as failed:
                if len(self._roster.in_sync()) == 1:
                    raise
                self._roster.fail(failed.member, self.durable.commit, failed)

    def _abandon(self, segment: Segment) -> None:
        segment.state = State.SEALED
        segment.last_commit = min(segment.last_commit, self.durable.commit)
        segment.announced_in = min(segment.announced_in, self.durable.commit)

    def die(self, error: DeviceError) -> None:
        """Stop the log: nothing more is written, and every waiter gets the error."""
        if self.intake.failure is not None:
            return
        log.critical("the pool takes no more writes: %s", error)
        self.intake.failure = error
        lost = [w.buffer for w in self._retained if w.buffer] + list(self.intake.queue)
        if self.intake.open is not None:
            lost.append(self.intake.open)
            self.intake.open = None
        for buffer in lost:
            buffer.error = error
            buffer.done.set()
        self.intake.pulse()


def with_jump(jumps: tuple[Jump, ...], jump: Jump) -> tuple[Jump, ...]:
    """The jumps with one more, which replaces a jump from the same commit.

    Raises:
        DeviceError: the list is full; a checkpoint would have emptied it.
    """
    kept = tuple(j for j in jumps if j.after_commit != jump.after_commit)
    if len(kept) >= JUMPS_MAX:
        raise DeviceError(f"too many failures since the last checkpoint: jumps={len(kept)}")
    return (*kept, jump)
