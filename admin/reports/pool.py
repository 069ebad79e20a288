"""Reports about the pool: its state, its space, and the greeting of its daemon."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.values import DaemonInfo
from admin.api.wire import encode
from admin.fullness import warning_of
from admin.reports.base import Report, counted, line, table
from admin.sizes import human
from storage.info import PoolInfo, PoolSpace

_PARTS_OF_DATA = ("unique", "shared", "deleted")


@dataclass(frozen=True, slots=True)
class PoolReport(Report):
    """The pool, and the daemon that serves it."""

    pool: PoolInfo
    daemon: DaemonInfo

    def text(self) -> Iterator[str]:
        """A few lines, then a table of the members."""
        pool = self.pool
        yield line(f"pool    {pool.uuid}, {pool.health}, {_copies(pool)}")
        yield line(f"room    {_room(pool)}")
        if warning := warning_of(pool):
            yield line(f"warning {warning}")
        volumes, snapshots = counted(pool.volumes, "volume"), counted(pool.snapshots, "snapshot")
        yield line(f"holds   {volumes}, {snapshots}")
        for endpoint in self.daemon.endpoints:
            yield line(f"served  {endpoint.format(name='NAME')}")
        yield line()
        yield table(
            ("member", "host", "state", "size", "free", "errors", "repaired"),
            [
                (
                    member.name or str(member.uuid),
                    member.host,
                    member.state.value,
                    human(member.size_bytes),
                    human(member.slots_free * pool.segment_bytes),
                    str(member.read_errors + member.checksum_errors),
                    str(member.repaired),
                )
                for member in pool.members
            ],
            right=("size", "free", "errors", "repaired"),
        )

    def json_value(self) -> Any:
        """The pool's fields, how full it is, and the daemon's under `daemon`."""
        fullness = {
            "used_percent": self.pool.used_percent, "warning": warning_of(self.pool),
        }  # fmt: skip
        return {**encode(self.pool), **fullness, "daemon": encode(self.daemon)}


@dataclass(frozen=True, slots=True)
class PoolSpaceReport(Report):
    """Where the bytes of the pool and of its members are."""

    space: PoolSpace

    def text(self) -> Iterator[str]:
        """A table of the pool's bytes by use, then a table of its members."""
        space = self.space
        since = f", {space.commits_since} commits since" if space.commits_since else ""
        yield line(f"as of commit {space.commit}{since}")
        yield table(("what", "bytes", ""), list(_rows(space)), right=("bytes",))
        yield line()
        yield table(
            ("member", "host", "size", "used", "cooling", "free", "reserve", "superblocks"),
            [
                (
                    member.name or str(member.uuid),
                    member.host,
                    human(member.size_bytes),
                    human(member.used_bytes),
                    human(member.cooling_bytes),
                    human(member.free_bytes),
                    human(member.reserve_bytes),
                    human(member.overhead_bytes),
                )
                for member in space.members
            ],
            right=("size", "used", "cooling", "free", "reserve", "superblocks"),
        )

    def json_value(self) -> Any:
        """The fields, as bytes."""
        return encode(self.space)


@dataclass(frozen=True, slots=True)
class ReadyReport(Report):
    """A daemon has begun to serve."""

    daemon: DaemonInfo
    pool: PoolInfo
    created: bool
    volumes: list[str]
    commands: list[str]
    """Commands to try next."""

    def text(self) -> Iterator[str]:
        """The pool, its volumes and its exports, then commands to copy."""
        verb = "created and serving" if self.created else "serving"
        yield line(f"cenote: {verb} pool {self.pool.uuid} from {self.daemon.home}")
        yield line(f"  room     {_room(self.pool)}, {_copies(self.pool)}")
        yield line(f"  volumes  {', '.join(self.volumes) or 'none yet'}")
        for endpoint in self.daemon.endpoints:
            yield line(f"  exports  {endpoint.format(name='NAME')}")
        yield line()
        yield line("Next, in another terminal:")
        for command in self.commands:
            yield line(f"  {command}")

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


def _rows(space: PoolSpace) -> Iterator[tuple[str, str, str]]:
    saved = space.mapped_bytes - space.data_bytes
    rows = [
        ("unique", space.unique_bytes, ""),
        ("shared", space.shared_bytes, ""),
        ("deleted", space.deleted_bytes, ""),
        ("data", space.data_bytes, f"compressed from {human(space.mapped_bytes)}" if saved else ""),
        ("map", space.map_bytes, ""),
        ("dead", space.dead_bytes, ""),
        ("unwritten", space.unwritten_bytes, ""),
        ("newer", space.newer_bytes, ""),
        ("cooling", space.cooling_bytes, ""),
        ("free", space.free_bytes, _kept(space.reserve_bytes, space.promised_bytes)),
        ("total", space.total_bytes, ""),
    ]
    for what, size, note in rows:
        yield "  " * (what in _PARTS_OF_DATA) + what, human(size), note


def _kept(reserve_bytes: int, promised_bytes: int) -> str:
    promised = f", {human(promised_bytes)} promised" if promised_bytes else ""
    return f"{human(reserve_bytes)} in reserve{promised}"


def _room(pool: PoolInfo) -> str:
    return f"{human(pool.free_bytes)} free of {human(pool.size_bytes)}"


def _copies(pool: PoolInfo) -> str:
    members = counted(len(pool.members), "member")
    return f"{pool.copies} {'copy' if pool.copies == 1 else 'copies'} on {members}"
