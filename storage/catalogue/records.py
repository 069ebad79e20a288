"""Records of the catalogue: one for each volume, snapshot and layer."""

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
    """The number of heads and snapshots with this layer; counted, not stored, as `children` is."""
    children: int = 0
    """The number of child layers."""
    copied: bool = False
    """The layer got copies of what it inherited: entries of descendants may name either place."""

    @property
    def unused(self) -> bool:
        """Whether the layer has to die: it has no name and no child."""
        return not (self.names or self.children or self.dying)

    @property
    def merges(self) -> bool:
        """Whether the layer has to be merged into its only child."""
        return self.children == 1 and not self.names


@dataclass(slots=True)
class Notes:
    """Notes that users set on volumes and snapshots. A protected one cannot be deleted; limits and
    space apply to volumes."""

    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    protected: bool = False
    limits: dict[str, float] = field(default_factory=dict)
    """The fields of `storage.throttle.Limits` that are set."""
    space: dict[str, int] = field(default_factory=dict)
    """`reserve_bytes` and `cap_bytes`, as far as they are set."""

    def change(self, notes: dict[str, Any]) -> None:
        """Change the notes that are named; an empty label and a limit or size of 0 are removed.

        Raises:
            TypeError, ValueError, AttributeError: a value does not fit.
        """
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
        """Return plain values for msgpack."""
        return [self.description, self.labels, self.protected, self.limits, self.space]

    @classmethod
    def unpack(cls, stored: Sequence[Any] = ("", {}, False)) -> "Notes":
        """The inverse of `pack`; catalogues of earlier versions have fewer fields, or no notes.

        Raises:
            TypeError, ValueError, AttributeError: the values are no notes.
        """
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
    """Goes with the snapshot wherever it is sent; `UNKNOWN` only in records of earlier versions."""
    schedule: str = ""
    """The name of the schedule that made and manages it, or empty."""


@dataclass(slots=True)
class Arrival:
    """The snapshot that is being received into a volume, and how much of it has arrived."""

    volume: str
    snapshot: str
    created: str
    identity: UUID
    base: UUID
    """Identity of the snapshot that the stream is the difference to, or `UNKNOWN`."""
    size_bytes: int
    """The snapshot's size; until it is complete, the volume is as large as the base if larger."""
    position: int = 0
    """Everything before this offset, in bytes, has arrived."""

    def pack(self) -> list[Any]:
        """Return plain values for msgpack."""
        return [
            self.volume, self.snapshot, self.created, self.identity.bytes, self.base.bytes,
            self.size_bytes, self.position,
        ]  # fmt: skip

    @classmethod
    def unpack(cls, stored: Sequence[Any]) -> "Arrival":
        """The inverse of `pack`. Raises TypeError or ValueError."""
        volume, snapshot, created, identity, base, size, position = stored
        texts = text(volume), text(snapshot), text(created)
        return cls(*texts, UUID(bytes=identity), UUID(bytes=base), whole(size), whole(position))


@dataclass(slots=True)
class VolumeRecord:
    """A volume: its size, its head layer and its snapshots, oldest first."""

    size_bytes: int
    head: int
    created: str
    origin: str = ""
    snapshots: dict[str, SnapshotRecord] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    arrival: Arrival | None = None
    """Set while a snapshot is received into the volume, which is no ordinary one then."""
    flattening: bool = False
    """Whether the volume gets copies of all that it inherits from others, in the background."""
