"""Volumes and snapshots by name: what may be done, and who has them open.

Each method checks a request and returns the operation that carries it out; nothing
changes before the operation is logged.
"""

from collections.abc import Callable
from datetime import datetime

from storage.blockmap import BlockMap
from storage.catalogue import Catalogue, Operation, SnapshotRecord, VolumeRecord
from storage.errors import ExistsError, InUseError, InvalidArgumentError, NotFoundError
from storage.names import check_name, check_size
from storage.volume import VolumeState

SPELLED_CLIENTS = "stop its clients first"


class Volumes:
    """The names of one pool."""

    def __init__(self, live: Catalogue, blockmap: BlockMap, wall_clock: Callable[[], datetime]):
        self._live = live
        self._map = blockmap
        self._wall_clock = wall_clock
        self._open: dict[str, VolumeState] = {}

    # -- looking up

    def record(self, volume: str) -> VolumeRecord:
        """One volume. Raises NotFoundError."""
        record = self._live.volumes.get(volume)
        if record is None:
            raise NotFoundError(f"no volume is called {volume!r}")
        return record

    def _snapshot_record(self, volume: str, snapshot: str) -> SnapshotRecord:
        record = self.record(volume).snapshots.get(snapshot)
        if record is None:
            raise NotFoundError(f"volume {volume!r} has no snapshot {snapshot!r}")
        return record

    def handles(self, name: str) -> int:
        """How many handles of a volume or a snapshot are open."""
        state = self._open.get(name)
        return 0 if state is None else state.handles

    def _refuse_if_open(self, name: str) -> None:
        if count := self.handles(name):
            raise InUseError(f"{name} is in use, {SPELLED_CLIENTS}: clients={count}")

    def _refuse_if_taken(self, name: str) -> None:
        if name in self._live.volumes:
            raise ExistsError(f"a volume called {name!r} exists already")

    def _now(self) -> str:
        return self._wall_clock().isoformat(timespec="seconds")

    # -- handles

    def open(self, name: str) -> tuple[VolumeState, bool]:
        """The shared state behind `NAME` or `NAME@SNAP`, and whether it is read-only."""
        volume, at, snapshot = name.partition("@")
        state = self._open.get(name)
        if at:
            frozen = self._snapshot_record(volume, snapshot)
            if state is None:
                layer = self._map.layers[frozen.layer]
                state = self._open[name] = VolumeState(name, layer, frozen.size_bytes)
        else:
            record = self.record(volume)
            if state is None:
                layer = self._map.layers[record.head]
                state = self._open[name] = VolumeState(name, layer, record.size_bytes)
        return state, bool(at)

    def closed(self, state: VolumeState) -> None:
        """A handle was closed."""
        if not state.handles:
            self._open.pop(state.name, None)

    # -- operations

    def create(self, name: str, size_bytes: int) -> Operation:
        """A new volume."""
        check_name(name, "volume")
        check_size(size_bytes)
        self._refuse_if_taken(name)
        head = self._live.next_layer
        return {"op": "create", "v": name, "size": size_bytes, "head": head, "at": self._now()}

    def delete(self, name: str, *, snapshots: bool) -> Operation:
        """Drop a volume and, if allowed, its snapshots."""
        record = self.record(name)
        self._refuse_if_open(name)
        if record.snapshots and not snapshots:
            raise InUseError(
                f"{name} has snapshots, delete them with it or first: {len(record.snapshots)}"
            )
        mine = {record.head} | {s.layer for s in record.snapshots.values()}
        for snap in record.snapshots:
            self._refuse_if_open(f"{name}@{snap}")
        for other, theirs in self._live.volumes.items():
            layers = {theirs.head} | {s.layer for s in theirs.snapshots.values()}
            if other != name and any(self._live.layers[n].parent in mine for n in layers):
                raise InUseError(f"{name} has a clone, delete that first: clone={other}")
        return {"op": "delete", "v": name}

    def resize(self, name: str, size_bytes: int) -> Operation:
        """Grow a volume."""
        record = self.record(name)
        check_size(size_bytes)
        if size_bytes < record.size_bytes:
            raise InvalidArgumentError(
                f"{name} has {record.size_bytes} bytes and cannot shrink to {size_bytes}"
            )
        return {"op": "resize", "v": name, "size": size_bytes}

    def snapshot(self, volume: str, snapshot: str) -> Operation:
        """Freeze the head."""
        check_name(snapshot, "snapshot")
        if snapshot in self.record(volume).snapshots:
            raise ExistsError(f"volume {volume!r} has a snapshot {snapshot!r} already")
        head = self._live.next_layer
        return {"op": "snapshot", "v": volume, "snap": snapshot, "head": head, "at": self._now()}

    def delete_snapshot(self, volume: str, snapshot: str) -> Operation:
        """Drop a frozen layer without children."""
        record = self._snapshot_record(volume, snapshot)
        self._refuse_if_open(f"{volume}@{snapshot}")
        if self._live.children(record.layer):
            raise InUseError(
                f"{volume}@{snapshot} is what the volume, a later snapshot or a clone stands on; "
                "delete those first, or roll back to an earlier snapshot"
            )
        return {"op": "unsnapshot", "v": volume, "snap": snapshot}

    def rollback(self, volume: str, snapshot: str) -> Operation:
        """Drop the head, go on above a snapshot."""
        self._snapshot_record(volume, snapshot)
        self._refuse_if_open(volume)
        head = self._live.next_layer
        return {"op": "rollback", "v": volume, "snap": snapshot, "head": head}

    def clone(self, volume: str, snapshot: str, new_name: str) -> Operation:
        """A new head above a snapshot."""
        check_name(new_name, "volume")
        self._snapshot_record(volume, snapshot)
        self._refuse_if_taken(new_name)
        return {
            "op": "clone", "v": new_name, "from": volume, "snap": snapshot,
            "head": self._live.next_layer, "at": self._now(),
        }  # fmt: skip

    def applied(self, operation: Operation) -> None:
        """Point open handles to the new head or the new size."""
        state = self._open.get(operation["v"])
        record = self._live.volumes.get(operation["v"])
        if state is not None and record is not None:
            state.layer = self._map.layers[record.head]
            state.size_bytes = record.size_bytes
