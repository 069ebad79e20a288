"""What the catalogue holds about each volume, snapshot and layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from storage.format.values import amount, text, whole

UNKNOWN = UUID(int=0)


@dataclass(slots=True)
class LayerRecord:
    """`parent` 0 means none. A dying layer has left the tree."""

    parent: int = 0
    dying: bool = False
    names: int = 0
    """How many volumes and snapshots it is; counted, not stored, as is the next."""
    children: int = 0
    """How many layers stand on it."""
    copied: bool = False
    """It got copies of what it inherited: entries below may name other places of the same."""

    @property
    def unused(self) -> bool:
        """Whether nothing needs it."""
        return not (self.names or self.children or self.dying)

    @property
    def merges(self) -> bool:
        """Whether it has to go into the one layer that stands on it."""
        return self.children == 1 and not self.names


@dataclass(slots=True)
class Notes:
    """What users write on volumes and snapshots. A protected one cannot be deleted; limits and
    space count for volumes."""

    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    protected: bool = False
    limits: dict[str, float] = field(default_factory=dict)
    """Of `storage.throttle.Limits`: those that are set."""
    space: dict[str, int] = field(default_factory=dict)
    """`reserve_bytes` and `cap_bytes`, as far as they are set."""

    def change(self, notes: dict[str, Any]) -> None:
        """Take what is named; a label, limit or size without a value goes."""
        self.description = text(notes.get("description", self.description))
        self.protected = bool(notes.get("protected", self.protected))
        for key, value in notes.get("limits", {}).items():
            if amount(value) or key == "burst_s":
                self.limits[_limit(key)] = value
            else:
                self.limits.pop(key, None)
        for key, value in notes.get("space", {}).items():
            if whole(value):
                self.space[_space(key)] = value
            else:
                self.space.pop(key, None)
        for key, value in notes.get("labels", {}).items():
            if text(value):
                self.labels[text(key)] = value
            else:
                self.labels.pop(key, None)

    def pack(self) -> list[Any]:
        """As msgpack takes it."""
        return [self.description, self.labels, self.protected, self.limits, self.space]

    @classmethod
    def unpack(cls, stored: Sequence[Any] = ("", {}, False)) -> "Notes":
        """The inverse of `pack`; catalogues written before there were notes have none."""
        description, labels, protected, *rest = stored
        texts = {text(key): text(value) for key, value in labels.items()}
        limits = {_limit(key): amount(value) for key, value in rest[0].items()} if rest else {}
        space = {_space(key): whole(value) for key, value in rest[1].items()} if rest[1:] else {}
        return cls(text(description), texts, bool(protected), limits, space)

    def copy(self) -> "Notes":
        """An independent copy."""
        return replace(
            self, labels=dict(self.labels), limits=dict(self.limits), space=dict(self.space)
        )


def _limit(name: Any) -> str:
    if name not in ("requests_per_s", "bytes_per_s", "burst_s"):
        raise ValueError(f"unknown limit: {name!r}"[:100])
    return str(name)


def _space(name: Any) -> str:
    if name not in ("reserve_bytes", "cap_bytes"):
        raise ValueError(f"unknown kind of room: {name!r}"[:100])
    return str(name)


@dataclass(slots=True)
class SnapshotRecord:
    """A frozen layer with a name."""

    layer: int
    size_bytes: int
    created: str
    notes: Notes = field(default_factory=Notes)
    identity: UUID = UNKNOWN
    """The same wherever it is sent to; `UNKNOWN` only in records older than that."""
    schedule: str = ""
    """Of an automatic snapshot, what made it."""


@dataclass(slots=True)
class Arrival:
    """What a volume is that a snapshot is being received into; it becomes that snapshot."""

    volume: str
    snapshot: str
    created: str
    identity: UUID
    base: UUID
    """Identity of the snapshot that the stream is the difference to, or `UNKNOWN`."""
    size_bytes: int
    """Of the snapshot; until it is whole, the volume is as large as the base if that is larger."""
    position: int = 0
    """Everything before this offset has arrived, if the volume is there at all."""

    def pack(self) -> list[Any]:
        """As msgpack takes it."""
        return [
            self.volume, self.snapshot, self.created, self.identity.bytes, self.base.bytes,
            self.size_bytes, self.position,
        ]  # fmt: skip

    @classmethod
    def unpack(cls, stored: Sequence[Any]) -> "Arrival":
        """The inverse of `pack`."""
        volume, snapshot, created, identity, base, size, position = stored
        texts = text(volume), text(snapshot), text(created)
        return cls(*texts, UUID(bytes=identity), UUID(bytes=base), whole(size), whole(position))


@dataclass(slots=True)
class VolumeRecord:
    """A name, a size and a head layer."""

    size_bytes: int
    head: int
    created: str
    origin: str = ""
    snapshots: dict[str, SnapshotRecord] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    arrival: Arrival | None = None
    """It is being received, and no ordinary volume."""
    flattening: bool = False
    """To get copies of all that it inherits from other volumes, in the background."""
