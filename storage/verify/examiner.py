"""Reads pieces of segments from every copy, compares them with their hashes, repairs bad copies.

An item that looks bad is read again on all copies, and only the second look decides. A place that
nothing alive needs is left as it is. Segments may be freed meanwhile: while bytes of a segment are
read or written it counts a reader, so its slots are not given to another segment (R10).
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from blockdev.errors import DeviceError
from storage.environment import Environment
from storage.format.codec import digest_of
from storage.format.superblock import RING_SLOTS, SUPERBLOCK_BYTES
from storage.members.member import Member
from storage.members.roster import Roster
from storage.members.segment_io import SegmentIO
from storage.members.segments import Segment, SegmentTable
from storage.throttle import Throttle
from storage.verify.manifest import Manifest, Piece, bad_items
from storage.verify.scrub_pass import Finding, Held, Outcome, ScrubPass

log = logging.getLogger("cenote.storage")

PIECE_BYTES = 4 << 20
"""Bytes that a thread reads from a copy at once, and another thread hashes in about 1 ms. Each
change of threads costs clients a moment, so pieces are large."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The kind of a damaged place, as `Finding.what`, and the ranges that are read from it."""

    what: str
    holds: list[Held] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Good:
    """A copy whose bytes are good: its member, where the segment starts there, and the bytes."""

    member: Member
    base: int
    data: memoryview


Known = dict[int, tuple[memoryview, Manifest | None]]
"""Bytes that were read of copies already, by member, all from one offset on; for the copy that a
manifest was made of, also the manifest, which says which items in these bytes are bad."""

Describe = Callable[[], Awaitable[Subject | None]]
"""Describes a damaged place; None when nothing alive needs it."""


class Examiner:
    """Reads, compares and repairs for one pass."""

    def __init__(
        self, env: Environment, table: SegmentTable, segment_io: SegmentIO, roster: Roster,
        scrub: ScrubPass, throttle: Throttle,
    ):  # fmt: skip
        self.scrub = scrub
        self._env = env
        self._table = table
        self._segment_io = segment_io
        self._roster = roster
        self._throttle = throttle
        self._unreadable: set[int] = set()
        """Indexes of members of which nothing can be read."""
        self._repaired: dict[int, Member] = {}
        """Members with repairs that are not flushed yet, by index."""
        self._began = trio.current_time() - scrub.seconds

    # -- reading

    def is_live(self, segment: Segment) -> bool:
        """Whether a segment still exists, and the map may name it."""
        return self._table.get(segment.number) is segment and self._table.is_live(segment.number)

    def copies(self, segment: Segment) -> list[tuple[Member, int]]:
        """The copies that are read: those on members that are in sync and can be read."""
        return [place for place in segment.places if self._counts(place[0])]

    def _counts(self, member: Member) -> bool:
        return member.in_sync and member.index not in self._unreadable

    async def read(self, member: Member, offset: int, length: int) -> memoryview:
        """Read from the medium of a member, at the throttle's rate. Raises as a device does."""
        await self._throttle.take(length)
        data = memoryview(await member.read_medium(offset, length))
        self.scrub.read_bytes += length
        self.scrub.seconds = trio.current_time() - self._began
        return data

    async def read_copy(
        self, segment: Segment, place: tuple[Member, int], offset: int, length: int
    ) -> memoryview | None:
        """Read bytes of one copy; None when they cannot be read."""
        member, base = place
        segment.readers += 1
        try:
            return await self.read(member, base + offset, length)
        except DeviceError as error:
            await self.failed(member, error)
            return None
        finally:
            segment.readers -= 1

    async def failed(self, member: Member, error: DeviceError) -> None:
        """After a failed read, find out whether all of a member is unreadable, and note that."""
        member.read_errors += 1
        if not self._counts(member):
            return
        place = self._roster.superblock.sequence % RING_SLOTS * SUPERBLOCK_BYTES
        try:
            await member.read_medium(place, SUPERBLOCK_BYTES)
        except DeviceError:
            if self._counts(member):
                self._unreadable.add(member.index)
                self.note(Finding("member", [member.name], 0, 0, 0, str(error), Outcome.UNREPAIRED))
                self.scrub.skip(f"{member.name}: cannot be read")

    # -- examining

    async def examine(
        self, segment: Segment, piece: Piece, known: Known | None = None, start: int = 0
    ) -> list[int]:
        """Indexes of the items of a piece that seem to be bad on some copy, ascending. The bytes in
        `known` begin at `start`."""
        suspect: set[int] = set()

        async def one(place: tuple[Member, int]) -> None:
            member, at = place[0], start
            data, manifest = (known or {}).get(member.index, (None, None))
            if data is None or piece.end > start + len(data):
                at, manifest = piece.start, None
                data = await self.read_copy(segment, place, at, piece.end - at)
            if data is None:
                suspect.update(range(len(piece.offsets)) if self._counts(member) else ())
            elif manifest is not None:
                suspect.update(manifest.bad_of(piece))
            else:
                suspect.update(await self._env.offload(partial(bad_items, data, at, piece)))

        copies = self.copies(segment)
        if len(copies) == 1:
            await one(copies[0])
        else:
            async with trio.open_nursery() as nursery:
                for place in copies:
                    nursery.start_soon(one, place)
        return sorted(suspect)

    async def settle(
        self, segment: Segment, piece: Piece, item: int, describe: Describe
    ) -> Outcome | None:
        """Read one item of a piece again on all copies, then repair and report the bad copies; None
        when all are good, or nothing alive needs the item.
        """
        if not self.is_live(segment):
            return None
        segment.readers += 1
        try:
            return await self._settle(segment, piece, item, describe)
        finally:
            segment.readers -= 1

    async def _settle(
        self, segment: Segment, piece: Piece, item: int, describe: Describe
    ) -> Outcome | None:
        offset, length = piece.offsets[item], piece.lengths[item]
        good, bad = await self._compare(segment, offset, length, piece.digests[item], piece.mask)
        if not bad:
            return None
        subject = await describe()
        bad = [each for each in bad if each[0].in_sync]
        if subject is None or not bad or not self.is_live(segment):
            self.scrub.harmless += bool(bad)
            return None
        outcome = Outcome.LOST
        if good is not None:
            outcome = await self._repair(bad, offset, good)
        for member, _, problem in bad:
            member.checksum_errors += problem == _MISMATCH
        self.note(
            Finding(
                subject.what, [member.name for member, _, _ in bad], segment.number, offset,
                length, bad[0][2], outcome, subject.holds,
            )
        )  # fmt: skip
        return outcome

    async def _compare(
        self, segment: Segment, offset: int, length: int, digest: int, mask: int
    ) -> tuple[_Good | None, list[tuple[Member, int, str]]]:
        """The good bytes of an item, if any copy has them, even on a member that is not in sync;
        and the bad copies: member, start of the segment there, and problem."""
        good: _Good | None = None
        bad: list[tuple[Member, int, str]] = []
        for member, base in segment.places:
            counts = self._counts(member)
            try:
                data = await self.read(member, base + offset, length)
            except DeviceError as error:
                if counts:
                    await self.failed(member, error)
                    bad.append((member, base, f"cannot be read: {error}"))
                continue
            if digest_of(data) & mask == digest:
                good = good or _Good(member, base, data)
            elif counts:
                bad.append((member, base, _MISMATCH))
        return good, [each for each in bad if self._counts(each[0])]

    async def _repair(
        self, bad: list[tuple[Member, int, str]], offset: int, good: _Good
    ) -> Outcome:
        """Write the good bytes over the bad ones, and read them back."""
        outcome = Outcome.REPAIRED
        for member, base, _ in bad:
            try:
                await self._overwrite(member, base, offset, good)
                again = await self.read(member, base + offset, len(good.data))
            except DeviceError as error:
                log.warning("repair failed: member=%s: %s", member.name, error)
                outcome = Outcome.UNREPAIRED
                continue
            if again != good.data:
                log.warning("repair failed, other bytes are read: member=%s", member.name)
                outcome = Outcome.UNREPAIRED
                continue
            member.repaired += 1
            self._repaired[member.index] = member
        return outcome

    async def _overwrite(self, member: Member, base: int, offset: int, good: _Good) -> None:
        try:
            await member.overwrite(base + offset, good.data)
        except DeviceError:
            # The rest of the physical blocks cannot be read either, so it is written, too. It is a
            # part of the same batch: the good copy has it, and its items are examined separately.
            grain = max(member.device.physical_bytes, member.device.block_bytes)
            start = offset // grain * grain
            span = -(-(offset + len(good.data) - start) // grain) * grain
            around = bytearray(await self.read(good.member, good.base + start, span))
            around[offset - start : offset - start + len(good.data)] = good.data
            await member.write(base + start, around)

    async def flush_repairs(self) -> None:
        """Make repairs durable; the log deals with a member whose flush fails (R4)."""
        members, self._repaired = list(self._repaired.values()), {}
        for failure in await self._segment_io.flush(members):
            log.warning("repairs may be lost: member=%s: %s", failure.member.name, failure.error)

    def note(self, finding: Finding) -> None:
        """Count and log a finding."""
        self.scrub.add(finding)
        level = logging.WARNING if finding.outcome is Outcome.REPAIRED else logging.ERROR
        log.log(
            level, "scrub: %s is damaged, %s: %s: %s",
            finding.what, finding.outcome.value, finding.problem, finding.where,
        )  # fmt: skip


_MISMATCH = "checksum mismatch"
