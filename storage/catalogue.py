r"""The catalogue: volumes, snapshots and the tree of layers, as plain data.

It changes only through operations, small msgpack maps that are logged. The same `apply`
runs when an operation is made and when it is replayed. Format version 1 of the operations
(`op` first, `v` names the volume, `at` is wall-clock time for display, layers are u64):

    create      v, size, head, at            a new volume with an empty head layer
    clone       v, from, snap, head, at      a volume whose head's parent is from@snap
    snapshot    v, snap, head, at            freeze the head as v@snap, go on in a new head
    rollback    v, snap, head                drop the head, go on in a new head above v@snap
    unsnapshot  v, snap                      drop the snapshot and its layer
    delete      v                            drop the volume with all its snapshots
    resize      v, size

A dropped layer is dying until checkpoints have given back what it stored. The catalogue itself is
stored in a checkpoint as one msgpack map: see `pack`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from storage.errors import DamagedError

Operation = dict[str, Any]


@dataclass(slots=True)
class LayerRecord:
    """`parent` 0 means none. A dying layer has left the tree."""

    parent: int = 0
    dying: bool = False


@dataclass(slots=True)
class SnapshotRecord:
    """A frozen layer with a name."""

    layer: int
    size_bytes: int
    created: str


@dataclass(slots=True)
class VolumeRecord:
    """A name, a size and a head layer."""

    size_bytes: int
    head: int
    created: str
    origin: str = ""
    snapshots: dict[str, SnapshotRecord] = field(default_factory=dict)


class Catalogue:
    """All volumes, snapshots and layers at one commit."""

    def __init__(self) -> None:
        self.volumes: dict[str, VolumeRecord] = {}
        self.layers: dict[int, LayerRecord] = {}
        self.next_layer = 1

    def children(self, layer: int) -> int:
        """How many layers stand on this one."""
        return sum(1 for record in self.layers.values() if record.parent == layer)

    # -- operations

    def apply(self, operation: Operation) -> None:
        """Carry out one operation.

        Raises:
            DamagedError: it does not fit the catalogue; a replayed log would be damaged.
        """
        try:
            _OPERATIONS[operation["op"]](self, operation)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"operation does not fit the catalogue: {operation}") from error

    def _new_layer(self, number: int, parent: int) -> int:
        if number in self.layers or (parent and parent not in self.layers):
            raise KeyError(number)
        self.layers[number] = LayerRecord(parent)
        self.next_layer = max(self.next_layer, number + 1)
        return number

    def _drop_layer(self, number: int) -> None:
        self.layers[number] = LayerRecord(0, dying=True)

    def _create(self, op: Operation) -> None:
        if op["v"] in self.volumes:
            raise KeyError(op["v"])
        head = self._new_layer(op["head"], 0)
        self.volumes[op["v"]] = VolumeRecord(op["size"], head, op["at"])

    def _clone(self, op: Operation) -> None:
        if op["v"] in self.volumes:
            raise KeyError(op["v"])
        source = self.volumes[op["from"]].snapshots[op["snap"]]
        head = self._new_layer(op["head"], source.layer)
        origin = f"{op['from']}@{op['snap']}"
        self.volumes[op["v"]] = VolumeRecord(source.size_bytes, head, op["at"], origin)

    def _snapshot(self, op: Operation) -> None:
        volume = self.volumes[op["v"]]
        if op["snap"] in volume.snapshots:
            raise KeyError(op["snap"])
        frozen = volume.head
        volume.head = self._new_layer(op["head"], frozen)
        volume.snapshots[op["snap"]] = SnapshotRecord(frozen, volume.size_bytes, op["at"])

    def _rollback(self, op: Operation) -> None:
        volume = self.volumes[op["v"]]
        snapshot = volume.snapshots[op["snap"]]
        old = volume.head
        volume.head = self._new_layer(op["head"], snapshot.layer)
        volume.size_bytes = snapshot.size_bytes
        self._drop_layer(old)

    def _unsnapshot(self, op: Operation) -> None:
        snapshots = self.volumes[op["v"]].snapshots
        self._drop_layer(snapshots[op["snap"]].layer)
        del snapshots[op["snap"]]

    def _delete(self, op: Operation) -> None:
        volume = self.volumes.pop(op["v"])
        self._drop_layer(volume.head)
        for snapshot in volume.snapshots.values():
            self._drop_layer(snapshot.layer)

    def _resize(self, op: Operation) -> None:
        self.volumes[op["v"]].size_bytes = int(op["size"])

    # -- persistence

    def pack(self) -> bytes:
        """The whole catalogue as msgpack."""
        return encode(
            {
                "next_layer": self.next_layer,
                "layers": [[n, r.parent, r.dying] for n, r in self.layers.items()],
                "volumes": [
                    [name, v.size_bytes, v.head, v.created, v.origin,
                     [[n, s.layer, s.size_bytes, s.created] for n, s in v.snapshots.items()]]
                    for name, v in self.volumes.items()
                ],
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
            made.next_layer = int(stored["next_layer"])
            for number, parent, dying in stored["layers"]:
                made.layers[int(number)] = LayerRecord(int(parent), bool(dying))
            for name, size, head, created, origin, snapshots in stored["volumes"]:
                volume = VolumeRecord(int(size), int(head), str(created), str(origin))
                for snap, layer, snap_size, at in snapshots:
                    volume.snapshots[snap] = SnapshotRecord(int(layer), int(snap_size), str(at))
                made.volumes[str(name)] = volume
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"catalogue does not add up: {error!r}") from error
        made._check()
        return made

    def _check(self) -> None:
        used = [v.head for v in self.volumes.values()]
        used += [s.layer for v in self.volumes.values() for s in v.snapshots.values()]
        used += [record.parent for record in self.layers.values() if record.parent]
        for number in used:
            if number not in self.layers or self.layers[number].dying:
                raise DamagedError(f"catalogue names a layer that is gone: layer={number}")
        if any(number >= self.next_layer for number in self.layers):
            raise DamagedError("catalogue has a layer from the future")
        if any(record.parent >= number for number, record in self.layers.items()):
            raise DamagedError("catalogue has a layer above its own child")

    def copy(self) -> "Catalogue":
        """An independent copy."""
        made = Catalogue()
        made.next_layer = self.next_layer
        made.layers = {n: replace(record) for n, record in self.layers.items()}
        made.volumes = {
            name: replace(v, snapshots={n: replace(s) for n, s in v.snapshots.items()})
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
}


def encode(value: Any) -> bytes:
    """Plain values as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def decode(data: bytes) -> Any:
    """Plain values from msgpack; every length it claims is held against the bytes there are (R18).

    Raises:
        DamagedError: not msgpack.
    """
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise DamagedError(f"not msgpack: {error!r}") from error
