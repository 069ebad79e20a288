"""Reports of the pool as plain values, ready for JSON: pool, members, volumes, snapshots, space."""

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID


class MemberState(StrEnum):
    """The state of a member as the pool records it."""

    IN_SYNC = "in sync"
    STALE = "stale"
    """The member missed commits: it holds only what was durable before it failed."""
    MISSING = "missing"
    """Stale and not attached."""


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member, with counters since the daemon started."""

    uuid: UUID
    name: str
    host: str
    state: MemberState
    size_bytes: int
    slots: int
    slots_free: int
    read_errors: int
    checksum_errors: int
    repaired: int


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """The whole pool; the byte counts are of one copy unless said otherwise."""

    uuid: UUID
    copies: int
    segment_bytes: int
    epoch: int
    health: str
    """`ok`, `degraded` (a member is stale), or `failed` (writes are refused)."""
    size_bytes: int
    """How much incompressible data fits the pool, without the reserve."""
    free_bytes: int
    live_bytes: int
    """Upper bound between checkpoints, exact at each."""
    commit: int
    durable_commit: int
    checkpoint_commit: int
    volumes: int
    snapshots: int
    members: list[MemberInfo]
    promised_bytes: int = 0
    """Part of the free bytes that is kept for volumes with reservations."""

    @property
    def used_percent(self) -> int:
        """How full the pool is for volumes without reservations, rounded down."""
        taken = self.size_bytes - self.free_bytes + self.promised_bytes
        return min(100, max(0, 100 * taken // self.size_bytes)) if self.size_bytes else 0


@dataclass(frozen=True, slots=True)
class ReceivingInfo:
    """The snapshot that is being received into a volume, and how much of it has arrived."""

    snapshot: str
    """`VOL@SNAP`."""
    position_bytes: int
    """Everything before this offset has arrived."""
    token: str
    """For `cenote send --resume`."""


@dataclass(frozen=True, slots=True)
class Flattening:
    """How far the flattening of a volume is; `error` is why it does not go on just now."""

    pages_done: int
    pages: int
    """Pages of the map, of 4 MiB each, that the layers of the volumes it inherits from changed."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """One volume. `clients` counts open handles; `created` is UTC, ISO 8601, for display only."""

    name: str
    size_bytes: int
    origin: str | None
    """`VOL@SNAP` or `VOL` that a clone was made from, while that exists."""
    snapshots: int
    clients: int
    created: str
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    protected: bool = False
    limits: dict[str, float] = field(default_factory=dict)
    """`requests_per_s`, `bytes_per_s` and `burst_s`, as far as they are set."""
    receiving: ReceivingInfo | None = None
    """Set while a snapshot is being received into the volume, or after that was interrupted; it is
    no ordinary volume yet."""
    space: dict[str, int] = field(default_factory=dict)
    """`reserve_bytes` and `cap_bytes`, as far as they are set."""
    flattening: Flattening | None = None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot, `volume@name`."""

    volume: str
    name: str
    size_bytes: int
    clones: int
    created: str
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    protected: bool = False
    uuid: str = ""
    """The identity of the snapshot, the same in each pool that it was sent to."""
    schedule: str = ""
    """The name of the schedule that made it, or empty."""


@dataclass(frozen=True, slots=True)
class MemberSpace:
    """Where the bytes of one member are. All but `reserve_bytes`, which is a part of
    `free_bytes`, add up to `size_bytes`."""

    uuid: UUID
    name: str
    host: str
    size_bytes: int
    overhead_bytes: int
    """Superblocks, the room kept for them, and an end too short for a segment."""
    used_bytes: int
    cooling_bytes: int
    """Freed, and reusable after the next checkpoint."""
    free_bytes: int
    reserve_bytes: int


@dataclass(frozen=True, slots=True)
class PoolSpace:
    """Where the bytes of the pool are, in one copy.

    The contents of segments are as of `commit`, the last checkpoint; segments begun since are
    `newer`. The parts add up: unique, shared and deleted to `data_bytes`; data, map, dead,
    unwritten, newer, cooling and free to `total_bytes`.
    """

    commit: int
    commits_since: int
    total_bytes: int
    mapped_bytes: int
    """Data before compression."""
    data_bytes: int
    unique_bytes: int
    """In layers that one volume reaches, itself or through its snapshots."""
    shared_bytes: int
    """In layers that several volumes reach, counted once."""
    deleted_bytes: int
    """Data of deleted volumes and snapshots; checkpoints give it back."""
    map_bytes: int
    dead_bytes: int
    """Overwritten and deleted data, and the headers and tables in the log; a segment becomes free
    only as a whole."""
    unwritten_bytes: int
    """Ends of segments."""
    newer_bytes: int
    cooling_bytes: int
    free_bytes: int
    reserve_bytes: int
    """Part of the free bytes that only deletes, trims and checkpoints may take."""
    promised_bytes: int
    """Part of the free bytes that volumes reserve and do not use yet."""
    members: list[MemberSpace]


@dataclass(frozen=True, slots=True)
class VolumeSpace:
    """The space of a volume with its snapshots, or of one snapshot, as of `commit`. Unique and
    shared bytes add up to the stored bytes.

    Deleting a volume with its snapshots gives back its unique bytes. The unique bytes of a snapshot
    are reached by no other snapshot and no head.
    """

    name: str
    size_bytes: int
    mapped_bytes: int
    """Data before compression, of all versions that are kept."""
    stored_bytes: int
    unique_bytes: int
    shared_bytes: int
    written_bytes: int
    """Stored since the last snapshot; for a snapshot, since the one before it."""
    own_bytes: int
    """Unique data before compression: what reservation and cap count."""
    commit: int


class NodeKind(StrEnum):
    """The kind of a node in the tree of volumes."""

    VOLUME = "volume"
    SNAPSHOT = "snapshot"
    KEPT = "kept"
    """Deleted, and still needed: it has two or more children."""
    MERGING = "merging"
    """Deleted, and being merged into its only child."""
    FREEING = "freeing"
    """Deleted; its space is being given back."""


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A volume, a snapshot, or a layer that is left of a deleted one.

    A snapshot is shown under its volume, and a clone under the snapshot or layer that it descends
    from.
    """

    name: str
    """`VOL`, `VOL@SNAP`, or `#NUMBER` for a layer without a name."""
    kind: NodeKind
    parent: str | None
    size_bytes: int = 0
    created: str = ""
    protected: bool = False
    pages_left: int = 0
    """Pages of its map that are still to be merged or given back; each maps 4 MiB."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One finding of a check: what is wrong, where, and whether a good copy is left."""

    what: str
    where: str
    repairable: bool


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of an offline check; clean means `damage` is empty."""

    pool: UUID
    commits: int
    extents: int
    bytes_verified: int
    pages: int
    damage: list[Damage]
