"""Resynchronization: brings stale members up to date, and restores missing copies of segments.

A member that failed is stale from its last good commit on. When it is attached again, only
the segments that it missed are copied: placed on it, and written after that commit (R5).
Segments that were written without it have fewer copies than the policy wants; each gets another
copy in the background, whole, one after the other.
"""

import logging
from dataclasses import dataclass, field

import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage.format.superblock import Copy
from storage.members.member import Member
from storage.members.roster import Roster
from storage.members.segments import Segment, SegmentTable, State

log = logging.getLogger("cenote.storage")

CHUNK_BYTES = 1 << 20
"""Copied at once; between two chunks other tasks run."""


@dataclass
class Resync:
    """Copies segments between members."""

    table: SegmentTable
    roster: Roster
    losses: dict[int, int] = field(default_factory=dict)
    """`Member.losses` by member index, from before the log was replayed; kept up to date."""

    async def bring_back(self) -> None:
        """Bring attached stale members up to date; a member that fails stays stale.

        The member that became stale last comes first: it may have what the others lack.
        """
        members = [member for member in self.roster.members if member is not None]
        for member in sorted(members, key=lambda m: -m.left.tried.sequence):
            if member.stale_since is not None:
                try:
                    await self._bring_back(member, member.stale_since)
                except DeviceError as error:
                    log.warning("member stays stale: member=%s: %s", member.name, error)

    async def _bring_back(self, member: Member, since: int) -> None:
        losses = member.losses
        missed = [s for s in self.table.all() if s.last_commit > since and _slot(s, member)]
        for segment in missed:
            if member.index in self.roster.last_holders(segment.copies):
                # No member has more of it. Replay repaired its end, which must not be lost (R3).
                losses = self.losses.get(member.index, losses)
                continue
            slot = _slot(segment, member)
            assert slot is not None
            source = [place for place in segment.places if place[0].in_sync]
            if not source:
                raise DeviceError(f"no member in sync has segment {segment.number}")
            await self._copy(segment, source[0], member, slot.slot)
        await member.flush_since(losses)
        member.stale_since = None
        self.table.relocate_all()
        try:
            await self.roster.publish(last=member)
        except DeviceError:
            member.stale_since = since
            self.table.relocate_all()
            raise
        self.losses[member.index] = member.losses
        log.warning("member is in sync again: member=%s segments=%d", member.name, len(missed))

    async def _copy(
        self, segment: Segment, source: tuple[Member, int], member: Member, slot: int
    ) -> None:
        target = member.slot_offset(slot)
        await member.allocate(target, self.table.segment_bytes)
        for start in range(0, segment.used_bytes, CHUNK_BYTES):
            length = min(CHUNK_BYTES, segment.used_bytes - start)
            data = await source[0].read(source[1] + start, length)
            await member.write(target + start, data)
            await trio.lowlevel.checkpoint()

    async def restore_one(self) -> bool:
        """Give one segment that lacks a copy another one; False when none could get one.

        The copy is flushed before anything names it; the next checkpoint records it, and a
        crash before that forgets it. Cancellation gives its slot back.
        """
        for segment in self.table.all():
            wanted = min(self.table.copies, len(self.roster.in_sync()))
            held = [member for member, _ in segment.places if member.in_sync]
            if segment.state is State.SEALED and held and len(segment.copies) < wanted:
                member = self._target(segment)
                if member is not None:
                    return await self._restore(segment, member)
        return False

    def _target(self, segment: Segment) -> Member | None:
        holding = {copy.member for copy in segment.copies}
        hosts = {m.host for m in self.table.members if m and m.index in holding}
        free = [
            m
            for m in self.table.usable_members()
            if m.index not in holding and self.table.free_slots(m)
        ]
        return min(free, key=lambda m: (m.host in hosts, -self.table.free_slots(m)), default=None)

    async def _restore(self, segment: Segment, member: Member) -> bool:
        slot = self.table.take_slot(member)
        if slot is None:
            return False
        copy = Copy(member.index, slot)
        losses = member.losses
        try:
            source = next(place for place in segment.places if place[0].in_sync)
            await self._copy(segment, source, member, slot)
            await member.flush_since(losses)
        except BaseException as error:
            self.table.give_back([copy])
            if isinstance(error, NoSpaceError):
                member.file_system_full = True
            if isinstance(error, DeviceError):
                log.warning("cannot restore a copy: member=%s: %s", member.name, error)
                return False
            raise
        if segment.state is not State.SEALED:
            self.table.give_back([copy])
            return True
        self.table.add_copy(segment, copy)
        log.info("copy restored: segment=%d member=%s", segment.number, member.name)
        return True


def _slot(segment: Segment, member: Member) -> Copy | None:
    return next((copy for copy in segment.copies if copy.member == member.index), None)
