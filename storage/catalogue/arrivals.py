"""Catalogue operations that receive a snapshot; the table is in `storage.catalogue.operations`.

A snapshot is received into a volume of its own, which is not served and cannot be used. When it is
complete, one operation turns that volume's head into the snapshot; so the snapshot appears whole or
not at all.
"""

from typing import Any
from uuid import UUID, uuid5

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.records import UNKNOWN, Arrival, SnapshotRecord, VolumeRecord


def receive(catalogue: Catalogue, op: dict[str, Any]) -> None:
    """Make the volume that a snapshot is received into."""
    if op["v"] in catalogue.volumes:
        raise KeyError(op["v"])
    arrival = Arrival.unpack(op["arrival"])
    head = catalogue.new_head(op["head"], op["on"])
    catalogue.volumes[op["v"]] = VolumeRecord(
        op["size"], head, op["at"], op["origin"], arrival=arrival
    )


def arrived(catalogue: Catalogue, op: dict[str, Any]) -> None:
    """Raise the position up to which the snapshot has arrived."""
    arrival = _arrival(catalogue, op["v"])
    arrival.position = max(arrival.position, op["position"])


def received(catalogue: Catalogue, op: dict[str, Any]) -> None:
    """Turn a volume whose snapshot has arrived completely into that snapshot."""
    arrival, came = _arrival(catalogue, op["v"]), catalogue.volumes[op["v"]]
    volume = catalogue.volumes.get(arrival.volume)
    if volume is not None and arrival.snapshot in volume.snapshots:
        raise KeyError(arrival.snapshot)
    head = catalogue.new_head(op["head"], came.head)  # which becomes the snapshot
    del catalogue.volumes[op["v"]]
    old = 0
    if volume is None:
        volume = VolumeRecord(arrival.size_bytes, head, op["at"], came.origin)
        catalogue.volumes[arrival.volume] = volume
    else:
        old, volume.head, volume.size_bytes = volume.head, head, arrival.size_bytes
    volume.snapshots[arrival.snapshot] = SnapshotRecord(
        came.head, arrival.size_bytes, arrival.created, identity=arrival.identity
    )
    if old:
        catalogue.unname(old)


def identify(catalogue: Catalogue, pool: UUID) -> None:
    """Give an identity to each snapshot of an earlier version, which has none.

    The identity is made from the pool and the layer's number, which are never reused, so it is the
    same each time. New snapshots get random identities: when a copy of a pool is used beside the
    original, both make layers of the same number.
    """
    for volume in catalogue.volumes.values():
        for snapshot in volume.snapshots.values():
            if snapshot.identity == UNKNOWN:
                snapshot.identity = uuid5(pool, f"layer {snapshot.layer}")


def _arrival(catalogue: Catalogue, name: str) -> Arrival:
    arrival = catalogue.volumes[name].arrival
    if arrival is None:
        raise KeyError(name)
    return arrival
