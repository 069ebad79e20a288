r"""The catalogue: volumes, snapshots and the tree of layers, as plain data.

It changes only through operations, small msgpack maps that are logged. The same `apply`
runs when an operation is made and when it is replayed. Format version 1 of the operations
(`op` first, `v` names the volume, `at` is wall-clock time for display, layers are u64):

    create      v, size, head, at            a new volume with an empty head layer
    clone       v, from, snap, head, at      a volume whose head's parent is from@snap
    snapshot    v, snap, head, at, id        freeze the head as v@snap, go on in a new head
    group       snap, items, at, by          snapshot of several volumes; items are [v, head, id],
                                             by is the schedule that makes it, or absent
    fork        v, from, head, on, at        freeze the head of `from` without a name; `from`
                                             goes on in layer `on`, the new v in layer `head`
    rollback    v, snap, head                drop the head, go on in a new head above v@snap
    unsnapshot  v, snap                      drop the name of a snapshot
    delete      v                            drop the volume with all its snapshots
    resize      v, size
    rename      v, to                        a new name for a volume
    renamesnap  v, snap, to                  a new name for a snapshot
    promote     v, from                      move the snapshots of `from` that v stands on to v
    flatten     v, begin, layers             begin, or no longer try, to make v stand alone; these
                                             layers get copies of what they inherit
    sever       v, layers                    these layers of v have copies of all that they
                                             inherited: they stand on nothing from now on
    note        v, snap, notes               change notes of v, or of v@snap unless snap is empty
    schedule    name, spec                   set a schedule, or remove it without a spec
    receive     v, size, head, on, origin,   a volume v whose head, above layer `on` if not 0, is to
                at, arrival                  become a snapshot that is received; see `Arrival.pack`
    arrived     v, position                  it has got so far
    received    v, head, at                  it is whole: v goes, its head is the snapshot now, and
                                             the volume goes on in a new head above it

`id` is the identity of a snapshot, 16 random bytes that go with it wherever it is sent. Operations
of earlier versions have none.

A layer without a name is kept as long as two others stand on it. With one left, checkpoints merge
it into that; with none it is dying until checkpoints have given back what it stored. The catalogue
itself is stored in a checkpoint as one msgpack map: see `pack`.
"""

from dataclasses import replace
from typing import Any
from uuid import UUID

from storage import arrivals
from storage.errors import DamagedError
from storage.fields import check_operation, decode, encode, text, whole
from storage.lineage import LayerChanges, Lineage
from storage.records import (
    UNKNOWN,
    Arrival,
    LayerRecord,
    Notes,
    SnapshotRecord,
    VolumeRecord,
)
from storage.schedule import Schedule

Operation = dict[str, Any]


class Catalogue(Lineage):
    """All volumes, snapshots and layers at one commit."""

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, VolumeRecord] = {}
        self.schedules: dict[str, Schedule] = {}

    # -- operations

    def apply(self, operation: Operation) -> LayerChanges:
        """Carry out one operation. Cost: what it changes, however many layers there are.

        Raises:
            DamagedError: it does not fit the catalogue; a replayed log would be damaged.
        """
        self.changes = LayerChanges([], [], [], [])
        try:
            check_operation(operation)
            _OPERATIONS[operation["op"]](self, operation)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"operation does not fit the catalogue: {operation}"
            raise DamagedError(said[:500]) from error
        return self.changes

    def _create(self, op: Operation) -> None:
        if op["v"] in self.volumes:
            raise KeyError(op["v"])
        head = self.new_head(op["head"], 0)
        self.volumes[op["v"]] = VolumeRecord(op["size"], head, op["at"])

    def _clone(self, op: Operation) -> None:
        if op["v"] in self.volumes:
            raise KeyError(op["v"])
        source = self.volumes[op["from"]].snapshots[op["snap"]]
        head = self.new_head(op["head"], source.layer)
        origin = f"{op['from']}@{op['snap']}"
        self.volumes[op["v"]] = VolumeRecord(source.size_bytes, head, op["at"], origin)

    def _snapshot(self, op: Operation) -> None:
        self._freeze(op["v"], op["snap"], op["head"], op["at"], op.get("id", UNKNOWN.bytes))

    def _group(self, op: Operation) -> None:
        by = op.get("by", "")
        for name, head, *rest in op["items"]:
            self._freeze(name, op["snap"], head, op["at"], rest[0] if rest else UNKNOWN.bytes, by)

    def _freeze(
        self, name: str, snapshot: str, head: int, at: str, identity: bytes = UNKNOWN.bytes,
        by: str = "",
    ) -> None:  # fmt: skip
        volume = self.volumes[name]
        if snapshot in volume.snapshots:
            raise KeyError(snapshot)
        frozen = volume.head
        volume.head = self.new_head(head, frozen)
        volume.snapshots[snapshot] = SnapshotRecord(
            frozen, volume.size_bytes, at, identity=UUID(bytes=identity), schedule=by
        )

    def _fork(self, op: Operation) -> None:
        if op["v"] in self.volumes:
            raise KeyError(op["v"])
        source = self.volumes[op["from"]]
        frozen = source.head
        head = self.new_head(op["head"], frozen)
        source.head = self.new_head(op["on"], frozen)
        self.unname(frozen)
        self.volumes[op["v"]] = VolumeRecord(source.size_bytes, head, op["at"], op["from"])

    def _rollback(self, op: Operation) -> None:
        volume = self.volumes[op["v"]]
        snapshot = volume.snapshots[op["snap"]]
        old = volume.head
        volume.head = self.new_head(op["head"], snapshot.layer)
        volume.size_bytes = snapshot.size_bytes
        self.unname(old)

    def _unsnapshot(self, op: Operation) -> None:
        snapshots = self.volumes[op["v"]].snapshots
        self.unname(snapshots.pop(op["snap"]).layer)

    def _delete(self, op: Operation) -> None:
        volume = self.volumes.pop(op["v"])
        self.unname(volume.head)
        for snapshot in reversed(volume.snapshots.values()):
            self.unname(snapshot.layer)

    def _resize(self, op: Operation) -> None:
        self.volumes[op["v"]].size_bytes = op["size"]

    def _rename(self, op: Operation) -> None:
        if op["to"] in self.volumes:
            raise KeyError(op["to"])
        self.volumes[op["to"]] = self.volumes.pop(op["v"])
        self.schedules = {n: s.renamed(op["v"], op["to"]) for n, s in self.schedules.items()}
        for volume in self.volumes.values():
            source, at, snapshot = volume.origin.partition("@")
            if source == op["v"]:
                volume.origin = op["to"] + at + snapshot

    def _rename_snapshot(self, op: Operation) -> None:
        volume = self.volumes[op["v"]]
        if op["to"] in volume.snapshots:
            raise KeyError(op["to"])
        # In place: snapshots are listed oldest first.
        old, new = op["snap"], op["to"]
        record = volume.snapshots[old]
        record.schedule = ""  # whoever gives it a name of his own wants to keep it
        volume.snapshots = {
            (new if name == old else name): each for name, each in volume.snapshots.items()
        }
        assert volume.snapshots[new] is record
        for other in self.volumes.values():
            if other.origin == f"{op['v']}@{old}":
                other.origin = f"{op['v']}@{new}"

    def _promote(self, op: Operation) -> None:
        volume, source = self.volumes[op["v"]], self.volumes[op["from"]]
        moving = self.shared_snapshots(op["v"], op["from"])
        if not moving or moving.keys() & volume.snapshots.keys():
            raise KeyError(op["v"])
        for name in moving:
            del source.snapshots[name]
        volume.snapshots = {**moving, **volume.snapshots}
        volume.origin, source.origin = source.origin, f"{op['v']}@{[*moving][-1]}"
        for other in self.volumes.values():
            origin, _, snapshot = other.origin.partition("@")
            if other is not source and origin == op["from"] and snapshot in moving:
                other.origin = f"{op['v']}@{snapshot}"

    def shared_snapshots(self, volume: str, source: str) -> dict[str, SnapshotRecord]:
        """The snapshots of `source` that `volume` stands on, oldest first."""
        above = set()
        layer = self.volumes[volume].head
        while layer:
            above.add(layer)
            layer = self.layers[layer].parent
        theirs = self.volumes[source].snapshots
        return {name: record for name, record in theirs.items() if record.layer in above}

    def _note(self, op: Operation) -> None:
        volume = self.volumes[op["v"]]
        target = volume.snapshots[op["snap"]] if op["snap"] else volume
        target.notes.change(op["notes"])

    def _flatten(self, op: Operation) -> None:
        self.volumes[op["v"]].flattening = bool(op["begin"])
        for number in op["layers"]:
            self.copies(number)

    def _sever(self, op: Operation) -> None:
        volume = self.volumes[op["v"]]
        volume.flattening, volume.origin = False, ""
        for number in op["layers"]:
            self.copies(number)
            self.sever(number)

    def _schedule(self, op: Operation) -> None:
        if op.get("spec"):
            self.schedules[str(op["name"])] = Schedule.unpack(op["spec"])
        else:
            del self.schedules[op["name"]]

    # -- persistence

    def pack(self) -> bytes:
        """The whole catalogue as msgpack."""
        return encode(
            {
                "next_layer": self.next_layer,
                "layers": [[n, r.parent, r.dying, r.copied] for n, r in self.layers.items()],
                "aliases": [[n, into, segment] for n, (into, segment) in self.aliases.items()],
                "volumes": [
                    [name, v.size_bytes, v.head, v.created, v.origin,
                     [[n, s.layer, s.size_bytes, s.created, s.notes.pack(), s.identity.bytes,
                       s.schedule]
                      for n, s in v.snapshots.items()],
                     v.notes.pack(), v.arrival and v.arrival.pack(), v.flattening]
                    for name, v in self.volumes.items()
                ],
                "schedules": {name: s.pack() for name, s in self.schedules.items()},
            }
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> "Catalogue":
        """The inverse of `pack`.

        Raises:
            DamagedError: anything else than a catalogue.
        """
        made = cls()
        try:
            stored = decode(data)
            made.next_layer = whole(stored["next_layer"])
            for number, parent, dying, *copied in stored["layers"]:
                layer = LayerRecord(whole(parent), bool(dying), copied=any(copied))
                made.layers[whole(number)] = layer
            for number, into, segment in stored.get("aliases", ()):
                made.aliases[whole(number)] = (whole(into), whole(segment))
            for name, size, head, created, origin, snapshots, *rest in stored["volumes"]:
                volume = VolumeRecord(whole(size), whole(head), text(created), text(origin))
                volume.notes = Notes.unpack(*rest[:1])
                volume.arrival = Arrival.unpack(rest[1]) if rest[1:] and rest[1] else None
                volume.flattening = any(rest[2:])
                for snap, layer, snap_size, at, *more in snapshots:
                    volume.snapshots[text(snap)] = SnapshotRecord(
                        whole(layer), whole(snap_size), text(at), Notes.unpack(*more[:1]),
                        UUID(bytes=more[1]) if more[1:] else UNKNOWN,
                        "".join(more[2:]),
                    )  # fmt: skip
                made.volumes[text(name)] = volume
            for name, spec in stored.get("schedules", {}).items():
                made.schedules[text(name)] = Schedule.unpack(spec)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"catalogue does not add up: {error!r}") from error
        made._check()
        return made

    def _check(self) -> None:
        """Refuse what does not add up, and count what stands on each layer."""
        names = [v.head for v in self.volumes.values()]
        names += [s.layer for v in self.volumes.values() for s in v.snapshots.values()]
        parents = [record.parent for record in self.layers.values() if record.parent]
        for number in (*names, *parents):
            if number not in self.layers or self.layers[number].dying:
                raise DamagedError(f"catalogue names a layer that is gone: layer={number}")
        for number in names:
            self.layers[number].names += 1
        for number in parents:
            self.layers[number].children += 1
        if any(number >= self.next_layer for number in self.layers):
            raise DamagedError("catalogue has a layer from the future")
        if any(record.parent >= number for number, record in self.layers.items()):
            raise DamagedError("catalogue has a layer above its own child")

    def copy(self) -> "Catalogue":
        """An independent copy."""
        made = Catalogue()
        made.next_layer = self.next_layer
        made.aliases = dict(self.aliases)
        made.schedules = dict(self.schedules)
        made.layers = {n: replace(record) for n, record in self.layers.items()}
        made.volumes = {
            name: replace(
                v,
                snapshots={n: replace(s, notes=s.notes.copy()) for n, s in v.snapshots.items()},
                notes=v.notes.copy(),
                arrival=v.arrival and replace(v.arrival),
            )
            for name, v in self.volumes.items()
        }
        return made


_OPERATIONS = {
    "create": Catalogue._create,
    "clone": Catalogue._clone,
    "snapshot": Catalogue._snapshot,
    "rollback": Catalogue._rollback,
    "unsnapshot": Catalogue._unsnapshot,
    "delete": Catalogue._delete,
    "resize": Catalogue._resize,
    "group": Catalogue._group,
    "fork": Catalogue._fork,
    "rename": Catalogue._rename,
    "renamesnap": Catalogue._rename_snapshot,
    "promote": Catalogue._promote,
    "note": Catalogue._note,
    "receive": arrivals.receive,
    "arrived": arrivals.arrived,
    "received": arrivals.received,
    "schedule": Catalogue._schedule,
    "flatten": Catalogue._flatten,
    "sever": Catalogue._sever,
}
