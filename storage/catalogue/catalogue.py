"""The catalogue: volumes, snapshots and the tree of layers, as plain data at one commit."""

from dataclasses import replace
from uuid import UUID

from storage.catalogue.lineage import Lineage
from storage.catalogue.records import (
    UNKNOWN,
    Arrival,
    LayerRecord,
    Notes,
    SnapshotRecord,
    VolumeRecord,
)
from storage.catalogue.schedule import Schedule
from storage.errors import DamagedError
from storage.format.values import decode, encode, text, whole


class Catalogue(Lineage):
    """All volumes, snapshots, schedules and layers at one commit."""

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, VolumeRecord] = {}
        self.schedules: dict[str, Schedule] = {}

    def shared_snapshots(self, volume: str, source: str) -> dict[str, SnapshotRecord]:
        """The snapshots of `source` that `volume` descends from, oldest first."""
        ancestry = set()
        layer = self.volumes[volume].head
        while layer:
            ancestry.add(layer)
            layer = self.layers[layer].parent
        theirs = self.volumes[source].snapshots
        return {name: record for name, record in theirs.items() if record.layer in ancestry}

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
            DamagedError: the data is no catalogue, or contradicts itself.
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
        """Refuse a catalogue that contradicts itself; count the names and children of layers."""
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
