"""The registry of volumes and snapshots: names, open handles, and the rules for changes.

Each method under "operations" checks a request and returns the catalogue operation that
carries it out; nothing changes before the operation is logged.
"""

from collections.abc import Sequence
from typing import cast

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.names import check_name, check_notes, check_size
from storage.catalogue.operations import Operation
from storage.catalogue.records import Notes, SnapshotRecord, VolumeRecord
from storage.catalogue.schedule import SCHEDULES_MAX, Schedule, check_schedule
from storage.catalogue.tree import VolumeTree
from storage.environment import Environment
from storage.errors import ExistsError, InUseError, InvalidArgumentError, NotFoundError
from storage.map.blockmap import BlockMap
from storage.throttle import Limits
from storage.volumes.quota import Quotas
from storage.volumes.volume import VolumeState

SPELLED_CLIENTS = "stop its clients first"


class Registry:
    """The names and open handles of one pool."""

    def __init__(self, live: Catalogue, blockmap: BlockMap, quotas: Quotas, env: Environment):
        self._live = live
        self._quotas = quotas
        self._map = blockmap
        self._env = env
        self._open: dict[str, VolumeState] = {}

    # -- looking up

    def record(self, volume: str, *, arriving: bool = False) -> VolumeRecord:
        """The record of a volume; with `arriving`, also of one that is being received.

        Raises:
            NotFoundError: no volume has that name.
            InvalidArgumentError: the volume is being received, and `arriving` is not set.
        """
        record = self._live.volumes.get(volume)
        if record is None:
            raise NotFoundError(f"no volume is called {volume!r}")
        if record.arrival is not None and not arriving:
            raise InvalidArgumentError(
                f"{volume} is not whole: go on receiving {record.arrival.volume}@"
                f"{record.arrival.snapshot}, or delete it"
            )
        return record

    def snapshot_record(self, volume: str, snapshot: str) -> SnapshotRecord:
        """The record of a snapshot. Raises NotFoundError, and as `record`."""
        record = self.record(volume).snapshots.get(snapshot)
        if record is None:
            raise NotFoundError(f"volume {volume!r} has no snapshot {snapshot!r}")
        return record

    def handles(self, name: str) -> int:
        """How many handles of a volume or a snapshot are open."""
        state = self._open.get(name)
        return 0 if state is None else state.handles

    def pages_left(self, layer: int) -> int:
        """The number of pages that a layer still stores."""
        return self._map.layers[layer].directory.count()

    def refuse_if_open(self, name: str) -> None:
        """Raise InUseError if a volume or a snapshot has open handles."""
        if count := self.handles(name):
            raise InUseError(f"{name} is in use, {SPELLED_CLIENTS}: clients={count}")

    def _refuse_if_taken(self, name: str) -> None:
        if name in self._live.volumes:
            raise ExistsError(f"a volume called {name!r} exists already")

    def _refuse_if_protected(self, name: str, notes: Notes) -> None:
        if notes.protected:
            raise InUseError(f"{name} is protected, take that off first")

    def now(self) -> str:
        """The wall-clock time as ISO 8601, for display."""
        return self._env.wall_clock().isoformat(timespec="seconds")

    # -- handles

    def open(self, name: str, *, arriving: bool = False) -> tuple[VolumeState, bool]:
        """The state that all handles of `VOL` or `VOL@SNAP` share, and whether it is read-only.
        Raises as `record`.
        """
        volume, at, snapshot = name.partition("@")
        state = self._open.get(name)
        if at:
            frozen = self.snapshot_record(volume, snapshot)
            if state is None:
                layer = self._map.layers[frozen.layer]
                state = self._open[name] = VolumeState(name, layer, frozen.size_bytes)
        else:
            record = self.record(volume, arriving=arriving)
            if state is None:
                layer = self._map.layers[record.head]
                state = self._open[name] = VolumeState(name, layer, record.size_bytes)
                state.limit(Limits(**record.notes.limits))  # type: ignore[arg-type]
                state.quota = self._quotas.of(name)
        return state, bool(at)

    def closed(self, state: VolumeState) -> None:
        """Forget the shared state if its last handle was closed."""
        if not state.handles:
            self._open.pop(state.name, None)

    # -- operations

    def create(self, name: str, size_bytes: int) -> Operation:
        """Create a volume."""
        check_name(name, "volume")
        check_size(size_bytes)
        self._refuse_if_taken(name)
        head = self._live.next_layer
        return {"op": "create", "v": name, "size": size_bytes, "head": head, "at": self.now()}

    def delete(self, name: str, *, snapshots: bool) -> Operation:
        """Drop a volume and, if allowed, its snapshots."""
        record = self.record(name, arriving=True)
        self.refuse_if_open(name)
        self._refuse_if_protected(name, record.notes)
        if record.snapshots and not snapshots:
            raise InUseError(
                f"{name} has snapshots, delete them with it or first: {len(record.snapshots)}"
            )
        for snap, snap_record in record.snapshots.items():
            self.refuse_if_open(f"{name}@{snap}")
            self._refuse_if_protected(f"{name}@{snap}", snap_record.notes)
        return {"op": "delete", "v": name}

    def resize(self, name: str, size_bytes: int, *, shrink: bool) -> Operation:
        """Grow a volume, or shrink it after the range beyond `size_bytes` was zeroed (R12)."""
        record = self.record(name)
        check_size(size_bytes)
        if size_bytes < record.size_bytes:
            if not shrink:
                raise InvalidArgumentError(
                    f"{name} has {record.size_bytes} bytes, and what lies behind {size_bytes} "
                    "would be lost: shrink the file system in it first, then ask for shrinking"
                )
            self.refuse_if_open(name)
        return {"op": "resize", "v": name, "size": size_bytes}

    def snapshot(self, volume: str, snapshot: str) -> Operation:
        """Freeze the head of a volume under a name."""
        check_name(snapshot, "snapshot")
        if snapshot in self.record(volume).snapshots:
            raise ExistsError(f"volume {volume!r} has a snapshot {snapshot!r} already")
        return {
            "op": "snapshot", "v": volume, "snap": snapshot, "head": self._live.next_layer,
            "at": self.now(), "id": self._env.new_uuid().bytes,
        }  # fmt: skip

    def group(self, volumes: Sequence[str], snapshot: str, schedule: str) -> Operation:
        """Snapshot several volumes at one point of the log; `schedule` is empty without one."""
        check_name(snapshot, "snapshot")
        if not volumes or len(set(volumes)) < len(volumes):
            raise InvalidArgumentError("name one or more volumes, each once")
        for volume in volumes:
            if snapshot in self.record(volume).snapshots:
                raise ExistsError(f"volume {volume!r} has a snapshot {snapshot!r} already")
        first = self._live.next_layer
        items = [
            [volume, first + i, self._env.new_uuid().bytes] for i, volume in enumerate(volumes)
        ]
        by = {"by": schedule} if schedule else {}
        return {"op": "group", "snap": snapshot, "items": items, "at": self.now(), **by}

    def delete_snapshot(self, volume: str, snapshot: str) -> Operation:
        """Drop the name of a frozen layer; its descendants keep the blocks that they need."""
        record = self.snapshot_record(volume, snapshot)
        self.refuse_if_open(f"{volume}@{snapshot}")
        self._refuse_if_protected(f"{volume}@{snapshot}", record.notes)
        return {"op": "unsnapshot", "v": volume, "snap": snapshot}

    def rollback(self, volume: str, snapshot: str) -> Operation:
        """Replace the head of a volume by a new child of a snapshot's layer."""
        self.snapshot_record(volume, snapshot)
        self.refuse_if_open(volume)
        head = self._live.next_layer
        return {"op": "rollback", "v": volume, "snap": snapshot, "head": head}

    def clone(self, volume: str, snapshot: str | None, new_name: str) -> Operation:
        """Make a volume whose head is a child of a snapshot's layer, or of `volume`'s head now."""
        check_name(new_name, "volume")
        self._refuse_if_taken(new_name)
        if snapshot is None:
            self.record(volume)
            head = self._live.next_layer
            return {
                "op": "fork", "v": new_name, "from": volume, "head": head, "on": head + 1,
                "at": self.now(),
            }  # fmt: skip
        self.snapshot_record(volume, snapshot)
        return {
            "op": "clone", "v": new_name, "from": volume, "snap": snapshot,
            "head": self._live.next_layer, "at": self.now(),
        }  # fmt: skip

    def rename(self, name: str, new_name: str) -> Operation:
        """Rename a volume, and with it its snapshots."""
        record = self.record(name)
        check_name(new_name, "volume")
        self._refuse_if_taken(new_name)
        self.refuse_if_open(name)
        for snapshot in record.snapshots:
            self.refuse_if_open(f"{name}@{snapshot}")
        for other, arriving in self._live.volumes.items():
            if arriving.arrival is not None and arriving.arrival.volume == name:
                raise InUseError(f"{name} is being received into: finish or delete {other} first")
        return {"op": "rename", "v": name, "to": new_name}

    def rename_snapshot(self, volume: str, snapshot: str, new_name: str) -> Operation:
        """Rename a snapshot."""
        self.snapshot_record(volume, snapshot)
        check_name(new_name, "snapshot")
        if new_name in self.record(volume).snapshots:
            raise ExistsError(f"volume {volume!r} has a snapshot {new_name!r} already")
        self.refuse_if_open(f"{volume}@{snapshot}")
        return {"op": "renamesnap", "v": volume, "snap": snapshot, "to": new_name}

    def promote(self, name: str) -> Operation:
        """Move to a clone those snapshots of its origin that it descends from."""
        record = self.record(name)
        for source in self._live.volumes:
            moving = {} if source == name else self._live.shared_snapshots(name, source)
            if not moving:
                continue
            for snapshot in moving:
                self.refuse_if_open(f"{source}@{snapshot}")
                if snapshot in record.snapshots:
                    raise ExistsError(
                        f"{name} and {source} both have a snapshot {snapshot!r}, rename one first"
                    )
            return {"op": "promote", "v": name, "from": source}
        raise InvalidArgumentError(f"{name} stands on no snapshot of another volume")

    def flatten(self, name: str, *, on: bool) -> Operation:
        """Mark a volume for flattening, or remove the mark."""
        record = self.record(name)
        if not on and not record.flattening:
            raise InvalidArgumentError(f"{name} is not being flattened")
        layers = VolumeTree(self._live).branch_layers(name) if on else []
        if on and not record.origin and not layers:
            raise InvalidArgumentError(f"{name} stands on no other volume: nothing to flatten")
        return {"op": "flatten", "v": name, "begin": on, "layers": layers}

    def note(self, name: str, notes: dict[str, object]) -> Operation:
        """Change the description, labels or protection of a volume or a snapshot, or the limits,
        reservation or cap of a volume."""
        volume, at, snapshot = name.partition("@")
        record = self.snapshot_record(volume, snapshot) if at else self.record(volume)
        check_notes(notes, record.notes)
        if at and "limits" in notes:
            raise InvalidArgumentError(f"{name} is a snapshot: limits count for volumes")
        if "space" in notes:
            if at:
                raise InvalidArgumentError(f"{name} is a snapshot: caps are for volumes")
            self._quotas.check(name, {**record.notes.space, **cast(dict[str, int], notes["space"])})
        return {"op": "note", "v": volume, "snap": snapshot, "notes": notes}

    def set_schedule(self, name: str, schedule: Schedule) -> Operation:
        """Add a schedule, or replace it."""
        check_schedule(name, schedule)
        if name not in self._live.schedules and len(self._live.schedules) >= SCHEDULES_MAX:
            raise InvalidArgumentError(f"too many schedules: there may be {SCHEDULES_MAX}")
        return {"op": "schedule", "name": name, "spec": schedule.pack()}

    def remove_schedule(self, name: str) -> Operation:
        """Remove a schedule; its snapshots stay."""
        if name not in self._live.schedules:
            raise NotFoundError(f"no schedule is called {name!r}")
        return {"op": "schedule", "name": name}

    def applied(self, operation: Operation) -> None:
        """Give open handles the new heads, sizes, limits and quotas after an operation."""
        self._quotas.changed()
        for name, state in self._open.items():
            record = self._live.volumes.get(name)
            if record is not None:
                state.layer = self._map.layers[record.head]
                state.size_bytes = record.size_bytes
                state.limit(Limits(**record.notes.limits))  # type: ignore[arg-type]
                state.quota = self._quotas.of(name)
