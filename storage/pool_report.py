"""Reports of a pool: its state and its members, and where its bytes are."""

from typing import Protocol

from blockdev.errors import DeviceError
from storage.catalogue.catalogue import Catalogue
from storage.checkpoint.stock import Stock
from storage.format.superblock import MemberRow
from storage.info import MemberInfo, MemberSpace, MemberState, PoolInfo, PoolSpace
from storage.log.budget import SpaceBudget
from storage.map.usage import Usage
from storage.members.member import Member
from storage.members.roster import Roster
from storage.members.segments import Segment, SegmentTable, State
from storage.volumes.quota import Quotas
from storage.volumes.space import SpaceTree


class Reported(Protocol):
    """The parts of a pool that a report is made of."""

    @property
    def roster(self) -> Roster:
        """Its members."""
        ...

    @property
    def table(self) -> SegmentTable:
        """Its segments."""
        ...

    @property
    def space(self) -> SpaceBudget:
        """Its space for writes."""
        ...

    @property
    def quotas(self) -> Quotas:
        """Reservations and caps of volumes."""
        ...

    @property
    def failure(self) -> DeviceError | None:
        """The error that ended the pool, or None while it serves."""
        ...

    @property
    def durable_commit(self) -> int:
        """The number of the newest durable commit."""
        ...


def pool_info(pool: Reported, checkpoint_commit: int, live: Catalogue) -> PoolInfo:
    """The state of the whole pool; `live` is the catalogue as clients see it."""
    roster, table, space = pool.roster, pool.table, pool.space
    sb = roster.superblock
    rows = zip(roster.members, roster.rows(), strict=True)
    members = [_member_info(pool, member, row) for member, row in rows]
    health = "failed" if pool.failure else "ok"
    if health == "ok" and any(m.state is not MemberState.IN_SYNC for m in members):
        health = "degraded"
    return PoolInfo(
        uuid=sb.pool_uuid, copies=sb.copies, segment_bytes=sb.segment_bytes, epoch=sb.epoch,
        health=health, size_bytes=space.capacity_bytes if roster.in_sync() else 0,
        free_bytes=space.free_bytes() if roster.in_sync() else 0,
        live_bytes=sum(s.live_bytes for s in table.all()),
        commit=pool.durable_commit, durable_commit=pool.durable_commit,
        checkpoint_commit=checkpoint_commit, volumes=len(live.volumes),
        snapshots=sum(len(v.snapshots) for v in live.volumes.values()), members=members,
        promised_bytes=pool.quotas.promised_bytes(),
    )  # fmt: skip


def _member_info(pool: Reported, member: Member | None, row: MemberRow) -> MemberInfo:
    if member is None:
        return MemberInfo(
            uuid=row.uuid, name="", host=row.host, state=MemberState.MISSING,
            size_bytes=row.size_bytes, slots=row.slots, slots_free=0,
            read_errors=0, checksum_errors=0, repaired=0,
        )  # fmt: skip
    return MemberInfo(
        uuid=member.uuid, name=member.name, host=member.host,
        state=MemberState.IN_SYNC if member.in_sync else MemberState.STALE,
        size_bytes=member.size_bytes, slots=member.slots,
        slots_free=pool.table.free_slots(member), read_errors=member.read_errors,
        checksum_errors=member.checksum_errors, repaired=member.repaired,
    )  # fmt: skip


def pool_space(
    pool: Reported, stock: Stock, usage: Usage, live: Catalogue, promised_bytes: int
) -> PoolSpace:
    """The space of the whole pool, see `PoolSpace`. Cost: a pass over segments and layers."""
    table, size = pool.table, pool.table.segment_bytes
    segments = table.all()
    cooling = sum(1 for segment in segments if segment.state is State.FREED)
    newer = len(segments) - cooling - stock.segments
    free = table.free_segments() if pool.roster.in_sync() else 0
    reserve = min(free, pool.space.reserve_segments)
    unique, shared = SpaceTree(live, usage).unique_and_shared_bytes()
    data = usage.data_bytes
    return PoolSpace(
        commit=stock.commit, commits_since=pool.durable_commit - stock.commit,
        total_bytes=(stock.segments + newer + cooling + free) * size,
        mapped_bytes=sum(usage.mapped_bytes(layer) for layer, _, _ in usage),
        data_bytes=data, unique_bytes=unique, shared_bytes=shared,
        deleted_bytes=data - unique - shared, map_bytes=usage.map_bytes,
        dead_bytes=stock.used_bytes - stock.live_bytes,
        unwritten_bytes=stock.segments * size - stock.used_bytes,
        newer_bytes=newer * size, cooling_bytes=cooling * size, free_bytes=free * size,
        reserve_bytes=reserve * size, promised_bytes=promised_bytes,
        members=_member_spaces(pool, segments, reserve),
    )  # fmt: skip


def _member_spaces(pool: Reported, segments: list[Segment], reserve: int) -> list[MemberSpace]:
    size = pool.table.segment_bytes
    rows = pool.roster.rows()
    used, cooling = [0] * len(rows), [0] * len(rows)
    for segment in segments:
        counts = cooling if segment.state is State.FREED else used
        for copy in segment.copies:
            counts[copy.member] += 1
    free = [row.slots - u - c for row, u, c in zip(rows, used, cooling, strict=True)]
    kept = _shares(reserve * pool.table.copies, free)
    return [
        MemberSpace(
            uuid=row.uuid, name=member.name if member else "", host=row.host,
            size_bytes=row.size_bytes, overhead_bytes=row.size_bytes - row.slots * size,
            used_bytes=used[i] * size, cooling_bytes=cooling[i] * size, free_bytes=free[i] * size,
            reserve_bytes=kept[i] * size,
        )
        for i, (row, member) in enumerate(zip(rows, pool.roster.members, strict=True))
    ]  # fmt: skip


def _shares(total: int, parts: list[int]) -> list[int]:
    """Split `total`, at most the sum of `parts`, in proportion to `parts`; the first parts get the
    remainder of rounding, as far as they can take it."""
    whole = sum(parts)
    total = min(total, whole)
    shares = [total * part // whole if whole else 0 for part in parts]
    for i, part in enumerate(parts):
        more = min(total - sum(shares), part - shares[i])
        shares[i] += more
    return shares
