"""Turns the pool's state into the plain values of `storage.info`."""

from typing import TYPE_CHECKING

from storage.catalogue import Catalogue, SnapshotRecord, VolumeRecord
from storage.info import MemberInfo, MemberState, PoolInfo, SnapshotInfo, VolumeInfo
from storage.member import Member
from storage.superblock import MemberRow

if TYPE_CHECKING:
    from storage.pool import Pool


def pool_info(pool: "Pool", checkpoint_commit: int, live: Catalogue) -> PoolInfo:
    """The whole pool."""
    roster, table, space = pool.roster, pool.table, pool.space
    sb = roster.superblock
    rows = zip(roster.members, roster.rows(), strict=True)
    members = [_member_info(pool, member, row) for member, row in rows]
    health = "failed" if pool.failure else "ok"
    if health == "ok" and any(m.state is not MemberState.IN_SYNC for m in members):
        health = "degraded"
    segments = sum(m.slots for m in roster.in_sync()) // sb.copies - space.reserve_segments
    return PoolInfo(
        uuid=sb.pool_uuid, copies=sb.copies, segment_bytes=sb.segment_bytes, epoch=sb.epoch,
        health=health, size_bytes=max(0, segments) * sb.segment_bytes,
        free_bytes=space.free_bytes() if roster.in_sync() else 0,
        live_bytes=sum(s.live_bytes for s in table.all()),
        commit=pool.durable_commit, durable_commit=pool.durable_commit,
        checkpoint_commit=checkpoint_commit, volumes=len(live.volumes),
        snapshots=sum(len(v.snapshots) for v in live.volumes.values()), members=members,
    )  # fmt: skip


def _member_info(pool: "Pool", member: Member | None, row: MemberRow) -> MemberInfo:
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


def volume_info(name: str, record: VolumeRecord, clients: int, live: Catalogue) -> VolumeInfo:
    """One volume."""
    source, _, snapshot = record.origin.partition("@")
    there = source in live.volumes and snapshot in live.volumes[source].snapshots
    return VolumeInfo(
        name, record.size_bytes, record.origin if there else None, len(record.snapshots),
        clients, record.created,
    )  # fmt: skip


def snapshot_info(volume: str, name: str, record: SnapshotRecord, live: Catalogue) -> SnapshotInfo:
    """One snapshot."""
    heads = {v.head for n, v in live.volumes.items() if n != volume}
    clones = sum(1 for n in heads if live.layers[n].parent == record.layer)
    return SnapshotInfo(volume, name, record.size_bytes, clones, record.created)
