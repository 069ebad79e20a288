"""Turns records of volumes and snapshots into the plain values of `storage.info`."""

from collections import Counter

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.records import SnapshotRecord, VolumeRecord
from storage.catalogue.resume_token import token_of
from storage.info import (
    Flattening,
    ReceivingInfo,
    SnapshotInfo,
    VolumeInfo,
)


def volume_info(
    name: str, record: VolumeRecord, clients: int, live: Catalogue, flattening: Flattening | None
) -> VolumeInfo:
    """One volume; `clients` is the number of its open handles, `flattening` how far that is."""
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
    """One snapshot; `clones_of` has the number of clones by layer."""
    notes = record.notes
    return SnapshotInfo(
        volume, name, record.size_bytes, clones_of[record.layer], record.created,
        notes.description, dict(notes.labels), notes.protected, str(record.identity),
        record.schedule,
    )  # fmt: skip
