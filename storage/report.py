"""Turns the pool's state into the plain values of `storage.info`."""

from collections import Counter
from typing import TYPE_CHECKING

from storage.catalogue import Catalogue
from storage.info import (
    Flattening,
    MemberInfo,
    MemberState,
    PoolInfo,
    ReceivingInfo,
    SnapshotInfo,
    VolumeInfo,
)
from storage.member import Member
from storage.records import SnapshotRecord, VolumeRecord
from storage.superblock import MemberRow
from storage.targets import token_of

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


def volume_info(
    name: str, record: VolumeRecord, clients: int, live: Catalogue, flattening: Flattening | None
) -> VolumeInfo:
    """One volume."""
    source, at, snapshot = record.origin.partition("@")
    there = source in live.volumes and (not at or snapshot in live.volumes[source].snapshots)
    notes = record.notes
    return VolumeInfo(
        name, record.size_bytes, record.origin if there else None, len(record.snapshots),
        clients, record.created, notes.description, dict(notes.labels), notes.protected,
        dict(notes.limits), None if record.arrival is None else _receiving_info(record),
        dict(notes.space), flattening,
    )  # fmt: skip


def _receiving_info(record: VolumeRecord) -> ReceivingInfo:
    arrival = record.arrival
    assert arrival is not None
    name = f"{arrival.volume}@{arrival.snapshot}"
    return ReceivingInfo(name, arrival.position, str(token_of(record)))


def snapshot_info(
    volume: str, name: str, record: SnapshotRecord, clones_of: Counter[int]
) -> SnapshotInfo:
    """One snapshot; `clones_of` counts clones by layer."""
    notes = record.notes
    return SnapshotInfo(
        volume, name, record.size_bytes, clones_of[record.layer], record.created,
        notes.description, dict(notes.labels), notes.protected, str(record.identity),
        record.schedule,
    )  # fmt: skip
