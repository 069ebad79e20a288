"""Reads the log from a checkpoint to its end.

Replay follows only the chain: each header repeats the checksum of the one before (R2). A commit
that was durable when a later one was written must be good on some copy; otherwise the log is
damaged and the pool does not open (R3). A later commit counts when any copy of it is whole. The
first commit that is not whole ends the log, whatever lies behind it. A place that cannot be read on
any copy does not end the log: it may hold an acknowledged commit, so the pool does not open.
"""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from uuid import UUID

import numpy as np
import trio

from blockdev.errors import DeviceError, TakenError
from storage.errors import DamagedError
from storage.format import commit
from storage.format.checkpoint_root import LogPosition
from storage.format.codec import digest_of
from storage.format.commit import HEADER_BYTES, CommitHeader, Placed, Records
from storage.format.superblock import Copy, Jump
from storage.members.member import Member
from storage.members.segments import Role, Segment, SegmentTable

WINDOW_BYTES = 128 << 10
"""Read at once, as it holds many small commits."""

TABLE_WINDOW_BYTES = 16 << 10
"""Read at once behind a large commit: header and table of the next one, which is likely large, too.
Replay skips its payload; reading that made a tail of large commits take twice as long."""

LOOKS_MAX = 16
"""How often replay looks for data that is being read ahead, before a thread waits for it: a disk
takes 0.1 ms, and a thread 0.6 ms until replay goes on. A look takes 20 us, and other tasks run in
between."""

SCAN_BYTES = 8 << 20


@dataclass(slots=True)
class Found:
    """One commit of the chain; `position` is behind it."""

    header: CommitHeader
    records: Records
    position: LogPosition
    segment: Segment


class _Outcomes:
    """The results of reading the copies of one commit that was not found whole.

    If a copy that counts can be read and is not whole, the commit was never acknowledged. If no
    copy that counts can be read, it may have been, and the end of the log is not known. A member
    that failed when the pool was taken is no longer in sync, yet it may hold the only copy:
    `counting` has the members whose copies count, see `Roster.last_holders`.
    """

    def __init__(self, counting: set[int], *, was_clean: bool = False) -> None:
        self._counting = counting
        self._was_clean = was_clean
        self._failure: DeviceError | None = None
        self._is_known = False

    @contextmanager
    def of(self, member: Member) -> Iterator[None]:
        """Note how reading a member's copy ends; a DeviceError is kept, and ends the block."""
        try:
            yield
        except TakenError:
            raise
        except DeviceError as error:
            self._failure = error
        else:
            self._is_known |= member.index in self._counting

    def refuse_if_unknown(self, at: LogPosition) -> None:
        """Raise DeviceError if no copy that counts could be read.

        After a clean stop the log ends here, so missing members do not matter then.
        """
        if self._is_known or (self._was_clean and self._failure is None):
            return
        if self._failure is None:
            raise DeviceError(
                "the members that know where the log ends are gone, attach missing members: "
                f"after_commit={at.commit} segment={at.segment} members={sorted(self._counting)}"
            )
        raise DeviceError(
            "what may be the end of the log cannot be read, and may have been durable; "
            "see to the disk, or attach missing members: "
            f"after_commit={at.commit} segment={at.segment} error={self._failure}"
        ) from self._failure


@dataclass
class Replay:
    """A walk along the log. `end` is the position behind the last commit that counts."""

    table: SegmentTable
    pool_uuid: UUID
    jumps: tuple[Jump, ...]
    end: LogPosition
    durable: int
    """All commits through this one are known to be durable."""
    last_holders: Callable[[Iterable[Copy]], set[int]]
    """As `Roster.last_holders`."""
    commits: int = 0
    level: bool = True
    """Whether whole commits are written over torn copies of them."""
    was_clean: bool = False
    """Whether the log is known to end where the walk begins."""
    _window: tuple[int, int, memoryview] = field(default=(0, 0, memoryview(b"")))
    """(segment, offset, bytes) of the first copy that were read at once."""
    _window_bytes: int = WINDOW_BYTES
    _ahead: tuple[Member, int] | None = None
    """(member, device offset) of the read-ahead under way."""
    _known: dict[int, set[int]] = field(default_factory=dict)
    """By segment number, the members whose copies count."""

    async def commits_in_order(self) -> AsyncGenerator[Found, None]:
        """Yield every commit that counts; the caller applies it before it asks for the next.

        Raises:
            DamagedError: a commit that was durable is damaged on every copy.
            DeviceError: a place that may hold a commit cannot be read on any copy that counts.
        """
        ahead: deque[Found] = deque()
        at = self.end
        while True:
            at = self._after_jump(at)
            found = await self._next(at)
            if found is None:
                break
            self.durable = max(self.durable, found.header.durable_through)
            at = found.position
            if found.records.announced:
                number, copies = found.records.announced[-1]
                self.table.adopt(number, copies).announced_in = found.header.number
                at = replace(at, announced=number)
            for placed in found.records.placed:
                self._adopt_placed(placed, found.header.number)
            found.position = at
            ahead.append(found)
            while ahead and ahead[0].header.number <= self.durable:
                yield self._take(ahead.popleft())
        for found in ahead:
            if found.header.number > self.durable and not await self._level(found):
                at = self.end
                break
            yield self._take(found)
        await self._refuse_if_durable_lost()

    def _adopt_placed(self, placed: Placed, number: int) -> None:
        segment = self.table.adopt(placed.segment, placed.copies)
        segment.role = max(segment.role, Role.MOVED)
        segment.used_bytes = max(segment.used_bytes, placed.used_bytes)
        segment.announced_in = segment.announced_in or number
        segment.last_commit = number

    def _take(self, found: Found) -> Found:
        self.end = found.position
        self.commits += 1
        found.segment.used_bytes = max(
            found.segment.used_bytes, found.header.offset + found.header.total_bytes
        )
        found.segment.last_commit = found.header.number
        return found

    def _counting(self, segment: Segment) -> set[int]:
        known = self._known.get(segment.number)
        if known is None:
            known = self._known[segment.number] = self.last_holders(segment.copies)
        return known

    def _after_jump(self, at: LogPosition) -> LogPosition:
        for jump in self.jumps:
            if jump.after_commit == at.commit and jump.segment != at.segment:
                if jump.after_checksum != at.checksum:
                    raise DamagedError(f"superblock and log disagree: commit={at.commit}")
                return LogPosition(at.commit, at.checksum, jump.segment, 0)
        return at

    async def _next(self, at: LogPosition) -> Found | None:
        if at.announced:
            at = replace(at, segment=at.announced, offset=0)
        segment = self.table.get(at.segment)
        if segment is None or at.offset + HEADER_BYTES > self.table.segment_bytes:
            return None
        if not segment.places:
            if self.was_clean:
                return None
            # The segment may hold commits that were durable: the log need not end here.
            raise DamagedError(
                f"the log goes on where no member is attached, attach missing members: "
                f"after_commit={at.commit} segment={segment.number}"
            )
        outcomes = _Outcomes(self._counting(segment), was_clean=self.was_clean)
        for which, (member, _) in enumerate(segment.places):
            with outcomes.of(member):
                found = await self._read(segment, at, which)
                if found is not None:
                    return found
        outcomes.refuse_if_unknown(at)
        return None

    async def _read(self, segment: Segment, at: LogPosition, which: int) -> Found | None:
        """Return the commit behind `at` from copy number `which`, its records verified; None when
        header or table are not whole.

        Raises:
            DeviceError: the copy cannot be read.
        """
        head = await self._bytes(segment, at.offset, HEADER_BYTES, which)
        header = commit.decode_header(head)
        if header is None or not self._fits(header, at):
            return None
        is_small = header.total_bytes <= WINDOW_BYTES // 2
        self._window_bytes = WINDOW_BYTES if is_small else TABLE_WINDOW_BYTES
        self._read_ahead(segment, at.offset + header.total_bytes, which)
        table_at = at.offset + HEADER_BYTES
        table = await self._bytes(segment, table_at, header.table_bytes, which)
        if digest_of(table) != header.table_digest:
            return None
        records = commit.decode_table(table)
        position = LogPosition(
            header.number, header.checksum, at.segment, at.offset + header.total_bytes
        )
        return Found(header, records, position, segment)

    def _fits(self, header: CommitHeader, at: LogPosition) -> bool:
        return (
            header.number == at.commit + 1
            and header.previous == at.checksum
            and header.segment == at.segment
            and header.offset == at.offset
            and header.pool_uuid == self.pool_uuid
            and at.offset + header.total_bytes <= self.table.segment_bytes
        )

    def _read_ahead(self, segment: Segment, offset: int, which: int) -> None:
        """Begin to read from `offset` while a commit is decoded, unless the window has that."""
        number, start, data = self._window
        if number == segment.number and offset < start + len(data):
            return
        span = min(self._window_bytes, self.table.segment_bytes - offset)
        member, base = segment.places[which]
        if span > 0 and member.read_ahead(base + offset, span):
            self._ahead = (member, base + offset)

    async def _bytes(self, segment: Segment, offset: int, length: int, which: int) -> memoryview:
        """Return bytes of one copy; reads of the first copy go through the window."""
        member, base = segment.places[which]
        if which:
            return memoryview(await member.read(base + offset, length))
        number, start, data = self._window
        if number != segment.number or not start <= offset <= offset + length <= start + len(data):
            span = min(max(length, self._window_bytes), self.table.segment_bytes - offset)
            try:
                data = await self._awaited(member, base + offset, span)
            except DeviceError:
                # The bytes that cannot be read may lie further on in the window.
                return memoryview(await member.read(base + offset, length))
            self._window = (segment.number, offset, data)
            start = offset
        return data[offset - start : offset - start + length]

    async def _awaited(self, member: Member, offset: int, length: int) -> memoryview:
        looks = LOOKS_MAX if self._ahead == (member, offset) else 0
        for _ in range(looks):
            data = member.try_read(offset, length)
            if data is not None:
                return data
            await trio.lowlevel.checkpoint()
        return memoryview(await member.read(offset, length))

    # -- the tail

    async def _level(self, found: Found) -> bool:
        """Make all copies that count of a commit behind the durable point alike (R3).

        Returns False when none is whole: the log ends before this commit.
        """
        whole: memoryview | None = None
        torn: list[tuple[Member, int]] = []
        header = found.header
        counting = self._counting(found.segment)
        outcomes = _Outcomes(counting)
        for member, base in found.segment.places:
            data = memoryview(b"")
            with outcomes.of(member):
                data = memoryview(await member.read(base + header.offset, header.total_bytes))
            if self._is_whole(data, found):
                whole = data
            elif member.index in counting:
                torn.append((member, base))
        if whole is None:
            outcomes.refuse_if_unknown(self.end)
            return False
        for member, base in torn if self.level else ():
            await member.overwrite(base + header.offset, whole)
        return True

    def _is_whole(self, data: memoryview, found: Found) -> bool:
        header = found.header
        if len(data) != header.total_bytes or commit.decode_header(data) != header:
            return False
        table = data[HEADER_BYTES : HEADER_BYTES + header.table_bytes]
        if digest_of(table) != header.table_digest:
            return False
        return commit.payload_is_good(data, header, found.records)

    async def _refuse_if_durable_lost(self) -> None:
        """Raise DamagedError if more commits were durable than were read.

        A header behind the end that says so proves damage, not a torn tail.
        """
        durable = max(self.durable, await self._durable_behind_end())
        if durable > self.end.commit:
            raise DamagedError(
                "log is damaged: commits that were durable cannot be read from any copy; "
                f"attach missing members or restore: last_good={self.end.commit} "
                f"durable={durable} segment={self.end.segment} offset={self.end.offset}"
            )

    async def _durable_behind_end(self) -> int:
        """Return the highest `durable_through` in headers behind the end, 0 without any."""
        at = self._after_jump(self.end)
        if at.announced:
            at = replace(at, segment=at.announced, offset=0)
        segment = self.table.get(at.segment)
        if segment is None:
            return 0
        best = 0
        for member, base in segment.places:
            for start in range(at.offset, self.table.segment_bytes, SCAN_BYTES):
                length = min(SCAN_BYTES, self.table.segment_bytes - start)
                try:
                    data = memoryview(await member.read(base + start, length))
                except DeviceError:
                    continue
                best = max(best, self._highest_durable(data, at, start))
        return best

    def _highest_durable(self, data: memoryview, at: LogPosition, start: int) -> int:
        magic = np.frombuffer(commit.MAGIC, dtype="<u8")[0]
        words = np.frombuffer(data, dtype="<u8")[::512]
        best = 0
        for place in (words == magic).nonzero()[0].tolist():
            header = commit.decode_header(data[place * 4096 : place * 4096 + HEADER_BYTES])
            if (
                header is not None
                and header.segment == at.segment
                and header.pool_uuid == self.pool_uuid
                and header.offset == start + place * 4096
                and header.number > at.commit
            ):
                best = max(best, header.durable_through)
        return best
