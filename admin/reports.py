"""What commands return: plain values that `admin.output` writes as text or JSON.

`json_value` decides what `--json` prints; by default the fields of the report.
"""

from dataclasses import dataclass
from typing import Any

from admin.status import ClientInfo, DaemonInfo
from admin.wire import encode
from storage.info import CheckReport, PoolInfo, SnapshotInfo, VolumeInfo


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
        """The pool's fields, and the daemon's under `daemon`."""
        return {**encode(self.pool), "daemon": encode(self.daemon)}


@dataclass(frozen=True, slots=True)
class ClientsReport(Report):
    """The NBD connections."""

    clients: list[ClientInfo]

    def json_value(self) -> Any:
        """The list."""
        return encode(self.clients)


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
class DeletedReport(Report):
    """Something is gone; `kind` is `volume` or `snapshot`."""

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
