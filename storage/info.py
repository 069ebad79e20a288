"""What the pool tells about itself: plain values, ready for JSON."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class MemberState(StrEnum):
    """What the pool believes of a member."""

    IN_SYNC = "in sync"
    STALE = "stale"
    """Missed commits; holds only what was durable before it failed."""
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
    """What volumes could hold if nothing compressed, reserve left out."""
    free_bytes: int
    live_bytes: int
    """Upper bound between checkpoints, exact at each."""
    commit: int
    durable_commit: int
    checkpoint_commit: int
    volumes: int
    snapshots: int
    members: list[MemberInfo]


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """One volume. `clients` counts open handles; `created` is UTC, ISO 8601, for display only."""

    name: str
    size_bytes: int
    origin: str | None
    """`VOL@SNAP` that a clone was made from, while that snapshot exists."""
    snapshots: int
    clients: int
    created: str


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot, `volume@name`."""

    volume: str
    name: str
    size_bytes: int
    clones: int
    created: str


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
