"""Operations of the catalogue by which a snapshot is received: see the table of operations.

A snapshot is received into a volume of its own, which is not served and cannot be used. When all of
it is there, one operation makes that volume's head the snapshot; so it appears whole or not at all.
"""

from typing import Any
from uuid import UUID, uuid5

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.records import UNKNOWN, Arrival, SnapshotRecord, VolumeRecord


def receive(catalogue: Catalogue, op: dict[str, Any]) -> None:
    """A volume to receive into."""
    if op["v"] in catalogue.volumes:
        raise KeyError(op["v"])
    arrival = Arrival.unpack(op["arrival"])
    head = catalogue.new_head(op["head"], op["on"])
    catalogue.volumes[op["v"]] = VolumeRecord(
        op["size"], head, op["at"], op["origin"], arrival=arrival
    )


def arrived(catalogue: Catalogue, op: dict[str, Any]) -> None:
    """It has got so far."""
    arrival = _arrival(catalogue, op["v"])
    arrival.position = max(arrival.position, op["position"])


def received(catalogue: Catalogue, op: dict[str, Any]) -> None:
    """It is whole, and becomes a snapshot."""
    arrival, came = _arrival(catalogue, op["v"]), catalogue.volumes[op["v"]]
    volume = catalogue.volumes.get(arrival.volume)
    if volume is not None and arrival.snapshot in volume.snapshots:
        raise KeyError(arrival.snapshot)
    head = catalogue.new_head(op["head"], came.head)  # the old one is the snapshot
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
    """Give an identity to snapshots of earlier versions, which have none: always the same one, as
    pool and layer never come to mean something else.

    New ones are random: of a pool that was copied and goes on twice, both make a layer of the
    same number.
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
