"""Online growth: adds a member, or uses the new space of a member that has become larger.

The steps of adding a member, and the state that a power cut leaves after each:

    its old superblocks are erased           a blank device
    its own superblock says: to be added     a device that opening leaves aside
    the other members' superblocks name it   a member, empty; its own superblock is believed
    its own superblock is written again      a member
    slots are taken on it                    a member, as any

A member that has become larger gets its closing superblock at the new end first, which also makes
the new size durable. Then all superblocks say the new size, and only then are the new slots used.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import trio

from storage.environment import Environment
from storage.errors import (
    DamagedError,
    ExistsError,
    ForeignMemberError,
    InvalidArgumentError,
    NotFoundError,
)
from storage.format import superblock
from storage.format.superblock import MEMBERS_MAX, MemberRow
from storage.members.member import (
    Member,
    MemberDevice,
    check_device_size,
    check_host,
    closing_offset,
    erase_superblocks,
    read_superblock,
    slots_in,
)
from storage.members.roster import Roster
from storage.members.segments import SegmentTable

log = logging.getLogger("cenote.storage")


class Growth:
    """Adds members and space to a pool. `grown` is called when there is more room."""

    def __init__(
        self, roster: Roster, table: SegmentTable, env: Environment, grown: Callable[[], None]
    ) -> None:
        self._roster = roster
        self._table = table
        self._env = env
        self._grown = grown
        self._lock = trio.Lock()

    async def add(self, offered: MemberDevice) -> UUID:
        """Make a device a member; all that it held is lost. Returns the member's UUID.

        The device stays open: it belongs to the caller. If cancelled, it is a member or not.

        Raises:
            InvalidArgumentError: the host label, the device or the number of members is unfit.
            MemberTooSmallError: the device has fewer than `SLOTS_MIN` slots.
            ExistsError: the device is a member already.
            ForeignMemberError: the device belongs to another pool.
            DeviceError: the device failed, or no member took a superblock; it is no member then.
        """
        async with self._lock:
            slots = await self._refuse_unfit(offered)
            sb = self._roster.superblock
            size_bytes = offered.device.size_bytes
            row = MemberRow(self._env.new_uuid(), offered.host, size_bytes, slots)
            index = len(self._roster.members)
            member = Member(index, offered, row, sb.segment_bytes)
            await erase_superblocks(offered.device)
            await member.flush()
            about = replace(sb, sequence=0, members=(*self._roster.rows(), row))
            await member.write_superblock(about)
            self._table.expect_member()
            with trio.CancelScope(shield=True):
                await self._roster.admit(member)
            self._table.add_slots(member, 0)
            self._grown()
            log.info("member added: member=%s host=%s slots=%d", member.name, member.host, slots)
            return member.uuid

    async def _refuse_unfit(self, offered: MemberDevice) -> int:
        sb = self._roster.superblock
        check_host(offered.host)
        if len(self._roster.members) >= MEMBERS_MAX:
            raise InvalidArgumentError(f"a pool has at most {MEMBERS_MAX} members")
        if offered.device.physical_bytes > sb.commit_align:
            raise InvalidArgumentError(
                f"its physical blocks are larger than the pool was made for: member={offered.name} "
                f"physical={offered.device.physical_bytes} pool={sb.commit_align}"
            )
        theirs = await read_superblock(offered.device)
        if theirs is not None and theirs.pool_uuid != sb.pool_uuid:
            raise ForeignMemberError(
                f"it is a member of pool {theirs.pool_uuid}; if that is given up, overwrite its "
                f"first MiB with zeroes: member={offered.name}"
            )
        if theirs is not None and theirs.me.uuid in {row.uuid for row in self._roster.rows()}:
            raise ExistsError(f"it is a member of this pool already: member={offered.name}")
        return check_device_size(offered, sb.segment_bytes)

    async def grow(self, uuid: UUID) -> int:
        """Use all of a member whose file or disk has become larger; returns its size in bytes.

        Raises:
            NotFoundError: no attached member has this UUID.
            InvalidArgumentError: the member is not in sync, or has not grown by a whole segment.
            DamagedError: the member has become smaller.
            DeviceError: the member failed, or no member took a superblock; the old size stays.
        """
        async with self._lock:
            member = self._attached(uuid)
            size_bytes = await member.device.measure()
            slots = slots_in(size_bytes, self._table.segment_bytes)
            self._refuse_no_growth(member, size_bytes, slots)
            closing = superblock.encode(self._roster.superblock.for_member(member.index))
            await member.write(closing_offset(size_bytes), closing)
            await member.flush()
            before = member.size_bytes, member.slots
            member.size_bytes, member.slots = size_bytes, slots
            try:
                with trio.CancelScope(shield=True):
                    await self._roster.publish()
            except BaseException:
                member.size_bytes, member.slots = before
                raise
            self._table.add_slots(member, before[1])
            self._grown()
            log.info(
                "member grown: member=%s slots=%d more=%d", member.name, slots, slots - before[1]
            )
            return size_bytes

    def _attached(self, uuid: UUID) -> Member:
        for member in self._roster.members:
            if member is not None and member.uuid == uuid:
                if not member.in_sync:
                    raise InvalidArgumentError(f"member is stale, wait: member={member.name}")
                return member
        raise NotFoundError(f"no attached member is {uuid}")

    def _refuse_no_growth(self, member: Member, size_bytes: int, slots: int) -> None:
        if size_bytes < member.size_bytes:
            raise DamagedError(
                f"member is smaller than it was: member={member.name} size={size_bytes} "
                f"was={member.size_bytes}"
            )
        if slots <= member.slots:
            missing = self._table.segment_bytes
            raise InvalidArgumentError(
                f"it has not become larger by a segment: member={member.name} size={size_bytes} "
                f"segment={missing} slots={member.slots}"
            )
