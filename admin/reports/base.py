"""What commands return: plain values that `admin.reports.output` writes as text or JSON.

`json_value` decides what `--json` prints; by default the fields of the report.
"""

from dataclasses import dataclass, field
from typing import Any

from admin.api.values import ClientInfo, DaemonInfo, ExportInfo, ScheduleInfo
from admin.api.wire import encode
from admin.fullness import warning_of
from storage.info import (
    CheckReport,
    MemberInfo,
    PoolInfo,
    PoolSpace,
    SnapshotInfo,
    TreeNode,
    VolumeInfo,
    VolumeSpace,
)


@dataclass(frozen=True, slots=True)
class Report:
    """Base of what commands return."""

    @property
    def exit_code(self) -> int:
        """The exit status of the command."""
        return 0

    def json_value(self) -> Any:
        """The value that `--json` prints."""
        return encode(self)


@dataclass(frozen=True, slots=True)
class PoolReport(Report):
    """The pool and where it is served."""

    pool: PoolInfo
    daemon: DaemonInfo

    def json_value(self) -> Any:
        """The pool's fields, how full it is, and the daemon's under `daemon`."""
        fullness = {
            "used_percent": self.pool.used_percent, "warning": warning_of(self.pool),
        }  # fmt: skip
        return {**encode(self.pool), **fullness, "daemon": encode(self.daemon)}


@dataclass(frozen=True, slots=True)
class PoolSpaceReport(Report):
    """Where the bytes of the pool are."""

    space: PoolSpace

    def json_value(self) -> Any:
        """The fields, as bytes."""
        return encode(self.space)


@dataclass(frozen=True, slots=True)
class VolumeSpaceReport(Report):
    """What volumes and snapshots take, and what the volumes are promised and limited to."""

    lines: list[VolumeSpace]
    limits: dict[str, dict[str, int]]

    def json_value(self) -> Any:
        """The lines, those of volumes with `reserve_bytes` and `cap_bytes`, 0 for none."""
        none = {"reserve_bytes": 0, "cap_bytes": 0}
        return [
            {**encode(line), **({**none, **self.limits[line.name]} if "@" not in line.name else {})}
            for line in self.lines
        ]


@dataclass(frozen=True, slots=True)
class MemberReport(Report):
    """One member that was `done` something to."""

    done: str
    member: MemberInfo

    def json_value(self) -> Any:
        """The member's fields."""
        return encode(self.member)


@dataclass(frozen=True, slots=True)
class MembersReport(Report):
    """The members of the pool."""

    pool: PoolInfo

    def json_value(self) -> Any:
        """The list."""
        return encode(self.pool.members)


@dataclass(frozen=True, slots=True)
class ClientsReport(Report):
    """The NBD connections."""

    clients: list[ClientInfo]

    def json_value(self) -> Any:
        """The list."""
        return encode(self.clients)


@dataclass(frozen=True, slots=True)
class DisconnectedReport(Report):
    """The clients that were disconnected."""

    disconnected: list[ClientInfo]


@dataclass(frozen=True, slots=True)
class ExportsReport(Report):
    """The exports that had clients, and what those did."""

    exports: list[ExportInfo]

    def json_value(self) -> Any:
        """The list."""
        return encode(self.exports)


@dataclass(frozen=True, slots=True)
class VolumeReport(Report):
    """One volume that was `done` something to, and where to connect to it."""

    done: str
    volume: VolumeInfo
    uri: str | None

    def json_value(self) -> Any:
        """The volume's fields and `uri`."""
        return {**encode(self.volume), "uri": self.uri}


@dataclass(frozen=True, slots=True)
class ResizedReport(Report):
    """A volume that was resized, and the clients that were told another size before."""

    volume: VolumeInfo
    uri: str | None
    stale: list[ClientInfo]

    def json_value(self) -> Any:
        """The volume's fields, `uri` and `stale_clients`."""
        return {**encode(self.volume), "uri": self.uri, "stale_clients": encode(self.stale)}


@dataclass(frozen=True, slots=True)
class VolumesReport(Report):
    """Many volumes."""

    volumes: list[VolumeInfo]

    def json_value(self) -> Any:
        """The list."""
        return encode(self.volumes)


@dataclass(frozen=True, slots=True)
class SnapshotReport(Report):
    """One snapshot that was `done` something to."""

    done: str
    snapshot: SnapshotInfo

    def json_value(self) -> Any:
        """The snapshot's fields."""
        return encode(self.snapshot)


@dataclass(frozen=True, slots=True)
class SnapshotsReport(Report):
    """Many snapshots."""

    snapshots: list[SnapshotInfo]

    def json_value(self) -> Any:
        """The list."""
        return encode(self.snapshots)


@dataclass(frozen=True, slots=True)
class TreeReport(Report):
    """Volumes, snapshots and clones, each with what it is shown under."""

    nodes: list[TreeNode]

    def json_value(self) -> Any:
        """The list."""
        return encode(self.nodes)


@dataclass(frozen=True, slots=True)
class ScheduleReport(Report):
    """A schedule that was `done` something to."""

    done: str
    schedule: ScheduleInfo

    def json_value(self) -> Any:
        """The schedule's fields."""
        return encode(self.schedule)


@dataclass(frozen=True, slots=True)
class SchedulesReport(Report):
    """All schedules."""

    schedules: list[ScheduleInfo]

    def json_value(self) -> Any:
        """The list."""
        return encode(self.schedules)


@dataclass(frozen=True, slots=True)
class DeletedReport(Report):
    """Something is gone; `kind` is `volume`, `snapshot` or `schedule`."""

    kind: str
    deleted: str


@dataclass(frozen=True, slots=True)
class CheckedReport(Report):
    """The result of an offline check."""

    check: CheckReport

    @property
    def exit_code(self) -> int:
        """0 when clean, 1 when there is damage."""
        return 1 if self.check.damage else 0

    def json_value(self) -> Any:
        """The check's fields and `clean`."""
        return {**encode(self.check), "clean": not self.check.damage}


@dataclass(frozen=True, slots=True)
class ReadyReport(Report):
    """A daemon has begun to serve."""

    daemon: DaemonInfo
    pool: PoolInfo
    created: bool
    volumes: list[str]
    commands: list[str]
    """Worth trying next."""

    def json_value(self) -> Any:
        """One event, so that a script knows when to go on."""
        return {
            "event": "ready",
            "pool": str(self.pool.uuid),
            "health": self.pool.health,
            "created": self.created,
            "volumes": self.volumes,
            "daemon": encode(self.daemon),
        }


@dataclass(frozen=True, slots=True)
class MapSummary:
    """How much of an export is data, zeroes that take room, and holes; in how many extents."""

    data_bytes: int
    zero_bytes: int
    hole_bytes: int
    extents: int


@dataclass(frozen=True, slots=True)
class ExportAbout:
    """What a server says of an export; `problem` is why it says nothing."""

    name: str
    mode: str
    tls: bool
    size_bytes: int = 0
    description: str = ""
    read_only: bool = False
    flags: list[str] = field(default_factory=list)
    block_bytes: int = 1
    preferred_bytes: int = 1
    payload_bytes_max: int = 0
    contexts: list[str] = field(default_factory=list)
    problem: str = ""
    map: MapSummary | None = None


@dataclass(frozen=True, slots=True)
class InfoReport(Report):
    """The exports of an NBD server, or the one that was asked for."""

    uri: str
    exports: list[ExportAbout]


@dataclass(frozen=True, slots=True)
class CopiedReport(Report):
    """What was copied where; the three counts are what became of the bytes: copied, made zeroes,
    and left alone as they were zeroes. `mismatches` are offsets, if it was verified."""

    source: str
    destination: str
    size_bytes: int
    copied_bytes: int
    zeroed_bytes: int
    skipped_bytes: int
    took_s: float
    verified: bool | None
    mismatches: list[int]

    @property
    def exit_code(self) -> int:
        """1 when the copy is not what its source was."""
        return 1 if self.mismatches else 0


@dataclass(frozen=True, slots=True)
class VersionReport(Report):
    """Which Cenote this is."""

    version: str
    python: str


@dataclass(frozen=True, slots=True)
class ExitCodesReport(Report):
    """Exit statuses and what they mean."""

    codes: dict[int, tuple[str, str]]

    def json_value(self) -> Any:
        """A list of code, error class and meaning."""
        return [
            {"exit_code": code, "error": name, "meaning": meaning}
            for code, (name, meaning) in self.codes.items()
        ]
