r"""Operations of the catalogue: the only changes to it that are logged.

An operation is a small msgpack map in the log. The same `apply` runs when an operation is
carried out and when it is replayed. Format version 1 of the operations
(`op` first, `v` names the volume, `at` is wall-clock time for display, layers are u64):

    create      v, size, head, at            a new volume with an empty head layer
    clone       v, from, snap, head, at      a volume whose head's parent is from@snap
    snapshot    v, snap, head, at, id        freeze the head as v@snap, go on in a new head
    group       snap, items, at, by          snapshot of several volumes; items are [v, head, id],
                                             by is the schedule that makes it, or absent
    fork        v, from, head, on, at        freeze the head of `from` without a name; `from`
                                             goes on in layer `on`, the new v in layer `head`
    rollback    v, snap, head                drop the head, go on in a new child of v@snap
    unsnapshot  v, snap                      drop the name of a snapshot
    delete      v                            drop the volume with all its snapshots
    resize      v, size
    rename      v, to                        a new name for a volume
    renamesnap  v, snap, to                  a new name for a snapshot
    promote     v, from                      move the snapshots of `from` that v descends from to v
    flatten     v, begin, layers             begin, or give up, to make v independent; these layers
                                             get copies of what they inherit
    sever       v, layers                    these layers of v have copies of all that they
                                             inherited: they have no parent from now on
    note        v, snap, notes               change notes of v, or of v@snap unless snap is empty
    schedule    name, spec                   set a schedule, or remove it without a spec
    receive     v, size, head, on, origin,   a volume v whose head, a child of `on` unless it is 0,
                at, arrival                  is to become a received snapshot; see `Arrival.pack`
    arrived     v, position                  the first `position` bytes of v have arrived
    received    v, head, at                  v is complete: its head becomes the snapshot, v goes,
                                             and the volume goes on in `head`, a child of that

`id` is the identity of a snapshot, 16 random bytes that go with it wherever it is sent. Operations
of earlier versions have none.

A layer without a name is kept as long as it has two children or more. With one child, checkpoints
merge it into the child; without any it is dying until checkpoints have given back what it stored.
The catalogue itself is stored in a checkpoint as one msgpack map: see `Catalogue.pack`.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from storage.catalogue import arrivals
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.lineage import LayerChanges
from storage.catalogue.records import UNKNOWN, SnapshotRecord, VolumeRecord
from storage.catalogue.schedule import Schedule
from storage.errors import DamagedError
from storage.format.values import text, whole

Operation = dict[str, Any]

_FIELDS = {
    "v": text, "from": text, "snap": text, "to": text, "at": text, "origin": text, "by": text,
    "size": whole, "head": whole, "on": whole, "position": whole,
}  # fmt: skip
"""Types of the fields in the table above, whichever operation they belong to."""


def check_operation(operation: Any) -> None:
    """Raise ValueError if a field of an operation has another type than it must have."""
    if type(operation) is not dict:
        raise ValueError(f"not an operation: {operation!r}"[:100])
    for name, check in _FIELDS.items():
        if name in operation:
            check(operation[name])


def apply(catalogue: Catalogue, operation: Operation) -> LayerChanges:
    """Carry out one operation and return the layers it changed, for the map to follow.

    Cost: in proportion to what the operation changes, however many layers there are.

    Raises:
        DamagedError: the operation does not fit the catalogue; a replayed log would be damaged.
    """
    catalogue.changes = LayerChanges([], [], [], [])
    try:
        check_operation(operation)
        _OPERATIONS[operation["op"]](catalogue, operation)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"operation does not fit the catalogue: {operation}"
        raise DamagedError(said[:500]) from error
    return catalogue.changes


def create(catalogue: Catalogue, op: Operation) -> None:
    """Make a volume with an empty head."""
    if op["v"] in catalogue.volumes:
        raise KeyError(op["v"])
    head = catalogue.new_head(op["head"], 0)
    catalogue.volumes[op["v"]] = VolumeRecord(op["size"], head, op["at"])


def clone(catalogue: Catalogue, op: Operation) -> None:
    """Make a volume whose head is a child of a snapshot's layer."""
    if op["v"] in catalogue.volumes:
        raise KeyError(op["v"])
    source = catalogue.volumes[op["from"]].snapshots[op["snap"]]
    head = catalogue.new_head(op["head"], source.layer)
    origin = f"{op['from']}@{op['snap']}"
    catalogue.volumes[op["v"]] = VolumeRecord(source.size_bytes, head, op["at"], origin)


def snapshot(catalogue: Catalogue, op: Operation) -> None:
    """Freeze the head of a volume as a snapshot."""
    _freeze(catalogue, op["v"], op["snap"], op["head"], op["at"], op.get("id", UNKNOWN.bytes))


def group(catalogue: Catalogue, op: Operation) -> None:
    """Freeze the heads of several volumes under one name."""
    by = op.get("by", "")
    for name, head, *rest in op["items"]:
        _freeze(catalogue, name, op["snap"], head, op["at"], rest[0] if rest else UNKNOWN.bytes, by)


def _freeze(
    catalogue: Catalogue, name: str, snapshot: str, head: int, at: str,
    identity: bytes = UNKNOWN.bytes, by: str = "",
) -> None:  # fmt: skip
    volume = catalogue.volumes[name]
    if snapshot in volume.snapshots:
        raise KeyError(snapshot)
    frozen = volume.head
    volume.head = catalogue.new_head(head, frozen)
    volume.snapshots[snapshot] = SnapshotRecord(
        frozen, volume.size_bytes, at, identity=UUID(bytes=identity), schedule=by
    )


def fork(catalogue: Catalogue, op: Operation) -> None:
    """Clone a volume as it is now: its head becomes a nameless layer with two children."""
    if op["v"] in catalogue.volumes:
        raise KeyError(op["v"])
    source = catalogue.volumes[op["from"]]
    frozen = source.head
    head = catalogue.new_head(op["head"], frozen)
    source.head = catalogue.new_head(op["on"], frozen)
    catalogue.unname(frozen)
    catalogue.volumes[op["v"]] = VolumeRecord(source.size_bytes, head, op["at"], op["from"])


def rollback(catalogue: Catalogue, op: Operation) -> None:
    """Drop the head of a volume and begin a new one, a child of a snapshot's layer."""
    volume = catalogue.volumes[op["v"]]
    snapshot = volume.snapshots[op["snap"]]
    old = volume.head
    volume.head = catalogue.new_head(op["head"], snapshot.layer)
    volume.size_bytes = snapshot.size_bytes
    catalogue.unname(old)


def unsnapshot(catalogue: Catalogue, op: Operation) -> None:
    """Drop the name of a snapshot."""
    snapshots = catalogue.volumes[op["v"]].snapshots
    catalogue.unname(snapshots.pop(op["snap"]).layer)


def delete(catalogue: Catalogue, op: Operation) -> None:
    """Drop a volume with all its snapshots."""
    volume = catalogue.volumes.pop(op["v"])
    catalogue.unname(volume.head)
    for snapshot in reversed(volume.snapshots.values()):
        catalogue.unname(snapshot.layer)


def resize(catalogue: Catalogue, op: Operation) -> None:
    """Change the size of a volume."""
    catalogue.volumes[op["v"]].size_bytes = op["size"]


def rename(catalogue: Catalogue, op: Operation) -> None:
    """Rename a volume."""
    if op["to"] in catalogue.volumes:
        raise KeyError(op["to"])
    catalogue.volumes[op["to"]] = catalogue.volumes.pop(op["v"])
    catalogue.schedules = {n: s.renamed(op["v"], op["to"]) for n, s in catalogue.schedules.items()}
    for volume in catalogue.volumes.values():
        source, at, snapshot = volume.origin.partition("@")
        if source == op["v"]:
            volume.origin = op["to"] + at + snapshot


def rename_snapshot(catalogue: Catalogue, op: Operation) -> None:
    """Rename a snapshot; a schedule then no longer manages it."""
    volume = catalogue.volumes[op["v"]]
    if op["to"] in volume.snapshots:
        raise KeyError(op["to"])
    # The snapshot keeps its place: snapshots are listed oldest first.
    old, new = op["snap"], op["to"]
    record = volume.snapshots[old]
    record.schedule = ""  # a user who names a snapshot wants to keep it
    volume.snapshots = {
        (new if name == old else name): each for name, each in volume.snapshots.items()
    }
    assert volume.snapshots[new] is record
    for other in catalogue.volumes.values():
        if other.origin == f"{op['v']}@{old}":
            other.origin = f"{op['v']}@{new}"


def promote(catalogue: Catalogue, op: Operation) -> None:
    """Move the snapshots that a clone descends from to the clone."""
    volume, source = catalogue.volumes[op["v"]], catalogue.volumes[op["from"]]
    moving = catalogue.shared_snapshots(op["v"], op["from"])
    if not moving or moving.keys() & volume.snapshots.keys():
        raise KeyError(op["v"])
    for name in moving:
        del source.snapshots[name]
    volume.snapshots = {**moving, **volume.snapshots}
    volume.origin, source.origin = source.origin, f"{op['v']}@{[*moving][-1]}"
    for other in catalogue.volumes.values():
        origin, _, snapshot = other.origin.partition("@")
        if other is not source and origin == op["from"] and snapshot in moving:
            other.origin = f"{op['v']}@{snapshot}"


def note(catalogue: Catalogue, op: Operation) -> None:
    """Change notes of a volume or of a snapshot."""
    volume = catalogue.volumes[op["v"]]
    target = volume.snapshots[op["snap"]] if op["snap"] else volume
    target.notes.change(op["notes"])


def flatten(catalogue: Catalogue, op: Operation) -> None:
    """Begin to flatten a volume, or give up flattening it."""
    catalogue.volumes[op["v"]].flattening = bool(op["begin"])
    for number in op["layers"]:
        catalogue.copies(number)


def sever(catalogue: Catalogue, op: Operation) -> None:
    """Detach layers that have copies of all that they inherited."""
    volume = catalogue.volumes[op["v"]]
    volume.flattening, volume.origin = False, ""
    for number in op["layers"]:
        catalogue.copies(number)
        catalogue.sever(number)


def set_schedule(catalogue: Catalogue, op: Operation) -> None:
    """Set or remove a schedule."""
    if op.get("spec"):
        catalogue.schedules[str(op["name"])] = Schedule.unpack(op["spec"])
    else:
        del catalogue.schedules[op["name"]]


_OPERATIONS: dict[str, Callable[[Catalogue, Operation], None]] = {
    "create": create,
    "clone": clone,
    "snapshot": snapshot,
    "rollback": rollback,
    "unsnapshot": unsnapshot,
    "delete": delete,
    "resize": resize,
    "group": group,
    "fork": fork,
    "rename": rename,
    "renamesnap": rename_snapshot,
    "promote": promote,
    "note": note,
    "receive": arrivals.receive,
    "arrived": arrivals.arrived,
    "received": arrivals.received,
    "schedule": set_schedule,
    "flatten": flatten,
    "sever": sever,
}
"""Each raises KeyError, TypeError, ValueError or AttributeError if the operation does not fit."""
