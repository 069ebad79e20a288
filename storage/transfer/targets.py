"""Checks where a snapshot may be received, and makes the operations that receive it.

As in `storage.volumes.registry`, nothing changes before an operation is logged.
"""

from uuid import UUID

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.names import NAME, check_name
from storage.catalogue.operations import Operation
from storage.catalogue.records import UNKNOWN, Arrival, SnapshotRecord, VolumeRecord
from storage.catalogue.resume_token import token_of
from storage.errors import (
    BaseMissingError,
    ExistsError,
    InUseError,
    InvalidArgumentError,
    StreamError,
)
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.transfer.stream import SUFFIX, StreamHeader
from storage.volumes.registry import Registry


class Targets:
    """The volumes of one pool that snapshots are received into."""

    def __init__(self, live: Catalogue, volumes: Registry, blockmap: BlockMap) -> None:
        self._live = live
        self._registry = volumes
        self._map = blockmap
        self._busy: set[str] = set()

    def begin(
        self, header: StreamHeader, volume: str, snapshot: str, *, discard: bool
    ) -> tuple[str, Operation | None]:
        """Return the name of the volume to receive into, and the operation that makes that volume,
        None if it exists already. No other stream may be received into it until `end`.

        Raises:
            InvalidArgumentError: a name is not acceptable.
            ExistsError: the snapshot, its name or the volume's name exists already, or another
                stream into this volume was interrupted.
            InUseError: the volume has clients, or was written to, and `discard` is not set; or it
                is being received into.
            BaseMissingError: the base of the stream is not here.
            StreamError: the stream begins after the position that the receiver reached.
        """
        check_name(volume, "volume")
        check_name(snapshot, "snapshot")
        name = volume + SUFFIX
        if not NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"{volume} is too long a name to receive into: {len(SUFFIX)} characters shorter"
            )
        base = UNKNOWN if header.base is None else header.base
        arrival = Arrival(
            volume, snapshot, header.created, header.snapshot, base, header.size_bytes
        )
        self._check(arrival, discard=discard)
        if name in self._busy:
            raise InUseError(f"{volume} is being received into right now")
        record = self._live.volumes.get(name)
        operation = None
        if record is None:
            operation = self._new(name, arrival, header)
        else:
            self._check_again(name, record, arrival, header)
        self._busy.add(name)
        return name, operation

    def note(self, name: str, position: int) -> Operation:
        """The operation that notes the position of the receiver. Raises NotFoundError."""
        record = self._registry.record(name, arriving=True)
        assert record.arrival is not None
        return {"op": "arrived", "v": name, "position": position}

    def end(self, name: str) -> None:
        """Let other streams be received into a volume."""
        self._busy.discard(name)

    def complete(self, name: str, *, discard: bool) -> Operation:
        """The operation that turns a whole volume into the snapshot. Raises as `begin`."""
        arrival = self._registry.record(name, arriving=True).arrival
        assert arrival is not None
        self._check(arrival, discard=discard)
        head = self._live.next_layer
        return {"op": "received", "v": name, "head": head, "at": self._registry.now()}

    def _new(self, name: str, arrival: Arrival, header: StreamHeader) -> Operation:
        if header.start:
            raise StreamError(
                f"the stream goes on at offset {header.start}, and nothing of it is here: send it "
                "from its start, without --resume"
            )
        on, origin, size_bytes = 0, "", header.size_bytes
        if arrival.base != UNKNOWN:
            base, origin = self._find_base(arrival, header)
            on, size_bytes = base.layer, max(size_bytes, base.size_bytes)
        return {
            "op": "receive", "v": name, "size": size_bytes, "head": self._live.next_layer,
            "on": on, "origin": origin, "at": self._registry.now(), "arrival": arrival.pack(),
        }  # fmt: skip

    def _find_base(self, arrival: Arrival, header: StreamHeader) -> tuple[SnapshotRecord, str]:
        """The base of the stream, and its name, `VOL@SNAP`."""
        here = arrival.volume in self._live.volumes
        for volume in [arrival.volume] if here else sorted(self._live.volumes):
            found = self.find(volume, arrival.base)
            if found is not None:
                return self._live.volumes[volume].snapshots[found], f"{volume}@{found}"
        where = f"volume {arrival.volume}" if here else "this pool"
        raise BaseMissingError(
            f"the stream is the difference to {header.base_name} ({arrival.base}), which {where} "
            "does not have: send that first, or the whole snapshot without --since"
        )

    def find(self, volume: str, identity: UUID) -> str | None:
        """The name of the snapshot of a volume that has this identity, or None."""
        snapshots = self._live.volumes[volume].snapshots
        return next((name for name, one in snapshots.items() if one.identity == identity), None)

    def _check(self, arrival: Arrival, *, discard: bool) -> None:
        """Refuse a snapshot that the volume cannot take, now or at the end."""
        volume = arrival.volume
        if volume not in self._live.volumes:
            return
        record = self._registry.record(volume)
        if (same := self.find(volume, arrival.identity)) is not None:
            raise ExistsError(f"{volume} has this snapshot already, as {volume}@{same}")
        if arrival.snapshot in record.snapshots:
            raise ExistsError(
                f"{volume} has another snapshot {arrival.snapshot!r}: choose a name, VOL@SNAP"
            )
        if arrival.base == UNKNOWN:
            raise ExistsError(
                f"volume {volume} exists: receive a whole snapshot under another name, or send "
                "the difference to a snapshot that both have (--since)"
            )
        self._registry.refuse_if_open(volume)
        if not discard and not self._is_kept(self._map.layers[record.head]):
            raise InUseError(
                f"{volume} was written to since its last snapshot: go back to that first "
                "(cenote snapshot rollback), or let go of it: --discard"
            )

    def _is_kept(self, head: Layer) -> bool:
        """Whether some snapshot holds the same data as the head of a volume."""
        named = {
            snapshot.layer
            for volume in self._live.volumes.values()
            for snapshot in volume.snapshots.values()
        }
        for layer in head.ancestry():
            if layer.number in named:
                return True
            if not layer.is_unchanged():
                return False
        return True

    def _check_again(
        self, name: str, record: VolumeRecord, arrival: Arrival, header: StreamHeader
    ) -> None:
        """Refuse a stream that does not continue the interrupted one."""
        there = record.arrival
        if there is None:
            raise ExistsError(f"a volume called {name!r} is in the way: rename it")
        same = (there.identity, there.base) == (arrival.identity, arrival.base)
        if not same or there.snapshot != arrival.snapshot:
            raise ExistsError(
                f"receiving {there.volume}@{there.snapshot} was interrupted: go on with it "
                f"(cenote send ... --resume {token_of(record)}), or delete what there is of it: "
                f"cenote volume delete {name}"
            )
        if header.start > there.position:
            raise StreamError(
                f"the stream goes on at offset {header.start}, but only what is before "
                f"{there.position} is here: cenote send ... --resume {token_of(record)}"
            )
