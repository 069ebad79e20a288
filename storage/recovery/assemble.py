"""Reads the superblocks of the offered devices and checks that they form one pool."""

import logging
from collections.abc import Collection, Sequence
from uuid import UUID

from storage.errors import (
    DamagedError,
    ForeignMemberError,
    MissingMemberError,
    NotAMemberError,
)
from storage.format.superblock import Superblock
from storage.members.member import Member, MemberDevice, read_superblock

log = logging.getLogger("cenote.storage")

Offered = list[tuple[MemberDevice, Superblock]]


async def read_all(offered: Sequence[MemberDevice]) -> Offered:
    """Return every device with its newest superblock.

    Raises:
        NotAMemberError: a device has none.
        MissingMemberError: no device is offered.
        DeviceError: as from `read_superblock`.
    """
    found: Offered = []
    for each in offered:
        sb = await read_superblock(each.device)
        if sb is None:
            raise NotAMemberError(
                f"not a member of a pool, or its superblocks are destroyed: member={each.name}"
            )
        found.append((each, sb))
    if not found:
        raise MissingMemberError("no member is attached: name at least one")
    return found


def newest_of(found: Offered) -> Superblock:
    """Return the newest superblock, after checking that all devices belong to one pool.

    Raises:
        MissingMemberError: all devices were only about to be added.
        ForeignMemberError: members of several pools, a copied or a former member, or a pool that
            was opened separately on different members.
        DamagedError: a device is smaller than the member was.
    """
    settled = [pair for pair in found if not pair[1].joining]
    if not settled:
        names = ", ".join(each.name for each, _ in found)
        raise MissingMemberError(f"only devices that were about to be added are attached: {names}")
    newest_device, newest = max(settled, key=lambda pair: pair[1].order)
    known = {row.uuid: row for row in newest.members}
    seen: dict[UUID, str] = {}
    for each, sb in found:
        if sb.pool_uuid != newest.pool_uuid:
            raise ForeignMemberError(
                f"members belong to different pools: {each.name} is of pool {sb.pool_uuid}, "
                f"{newest_device.name} of {newest.pool_uuid}"
            )
        if sb.me.uuid in seen:  # R16
            raise ForeignMemberError(
                f"one member twice, is one a copy? detach one of: {seen[sb.me.uuid]}, {each.name}"
            )
        if sb.me.uuid not in known and sb.joining:
            log.warning("adding it was interrupted, add it again: member=%s", each.name)
            continue
        if sb.me.uuid not in known:
            raise ForeignMemberError(f"no longer a member of this pool: member={each.name}")
        seen[sb.me.uuid] = each.name
        if each.device.size_bytes < known[sb.me.uuid].size_bytes:
            raise DamagedError(
                f"member is smaller than it was: member={each.name} "
                f"size={each.device.size_bytes} was={known[sb.me.uuid].size_bytes}"
            )
        _refuse_split(newest, newest_device.name, sb, each.name)
    return newest


def _refuse_split(newest: Superblock, newest_name: str, sb: Superblock, name: str) -> None:
    """Refuse a pool that was opened separately on different members, which now differ.

    An older superblock belongs to the history of the newest one if one of these holds:

    - Some member is in sync according to both. That member has seen both, so the older one is the
      past, even if each calls the member that carries the other one stale.
    - The same holder wrote both: all that one holder writes is one history.
    - The newest one records that the member may have held the older one when it failed. All
      members that it was in sync with may have failed since.

    Two holders in one epoch are refused in any case.
    """
    in_sync = {row.uuid for row in newest.members if row.stale_since is None}
    common = any(row.uuid in in_sync for row in sb.members if row.stale_since is None)
    twice = sb.epoch == newest.epoch and sb.holder != newest.holder
    is_past = common or sb.holder == newest.holder or _is_remembered(newest, sb)
    if twice or not is_past:
        raise ForeignMemberError(
            "the pool was opened separately on different members, which now differ; "
            f"detach the side you do not want: {newest_name}, {name}"
        )


def _is_remembered(newest: Superblock, sb: Superblock) -> bool:
    (left,) = (row.left for row in newest.members if row.uuid == sb.me.uuid)
    return left.covers(sb.seen)


def attach(newest: Superblock, found: Offered, without: Collection[UUID]) -> list[Member | None]:
    """Return the members in the order of the member table; None for a missing member.

    Args:
        without: UUIDs of members that the pool is opened without.

    Raises:
        MissingMemberError: a member is missing that is neither recorded stale nor given up (R5).
    """
    by_uuid = {sb.me.uuid: (each, sb) for each, sb in found}
    members: list[Member | None] = []
    for index, row in enumerate(newest.members):
        pair = by_uuid.get(row.uuid)
        if pair is not None:
            member = Member(index, pair[0], row, newest.segment_bytes)
            member.seen = pair[1].seen
            members.append(member)
            continue
        if row.stale_since is None and row.uuid not in without:
            raise MissingMemberError(
                f"a member is missing that the pool counts on, attach it or open without it: "
                f"member={row.uuid} host={row.host}"
            )
        members.append(None)
    return members
