"""Fakes of a pool, clients and members for tests of the API and the commands, over dicts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID

from admin.api.interfaces import Incoming, Outgoing
from admin.api.values import ClientInfo, DaemonInfo, ExportInfo, unix_endpoint
from admin.daemon.scheduler import Scheduler
from admin.errors import RefusedError
from admin.home import Home
from blockdev.errors import UnsupportedError
from storage.catalogue.schedule import Schedule
from storage.errors import ExistsError, InUseError, InvalidArgumentError, NotFoundError
from storage.info import (
    Flattening,
    MemberInfo,
    MemberSpace,
    MemberState,
    NodeKind,
    PoolInfo,
    PoolSpace,
    SnapshotInfo,
    TreeNode,
    VolumeInfo,
    VolumeSpace,
)
from storage.volumes.management import Management
from tests.unit.admin.fake_scrubs import FakeEngine

POOL = UUID("12345678-1234-5678-1234-567812345678")
CREATED = "2024-05-06T07:08:09+00:00"


class FakePool(Management):
    """The operations of a pool, over dicts; it is its own `management` and `transfers`."""

    def __init__(self) -> None:
        self.management = self.transfers = self
        self._volumes: dict[str, VolumeInfo] = {}
        self._snapshots: dict[tuple[str, str], SnapshotInfo] = {}
        self._schedules: dict[str, Schedule] = {}
        self.now = partial(datetime.now, UTC)
        self.calls: list[tuple[str, ...]] = []
        self.raises: Exception | None = None
        self.free_bytes = 1 << 32
        self.promised_bytes = 0
        self.open: dict[str, int] = {}
        self.scrubber = FakeEngine()
        self.waiting: list[TreeNode] = []
        self.looks: dict[str, list[Flattening]] = {}

    def info(self) -> PoolInfo:
        member = MemberInfo(
            POOL, "/dev/\x1b[31mred", "[bold]left", MemberState.IN_SYNC, 1 << 33, 256, 128, 1, 2, 3
        )
        return PoolInfo(
            POOL, 1, 32 << 20, 1, "ok", 1 << 33, self.free_bytes, 0, 1, 1, 1,
            len(self._volumes), len(self._snapshots), [member], self.promised_bytes,
        )  # fmt: skip

    def volumes(self) -> list[VolumeInfo]:
        return [
            replace(
                volume,
                snapshots=len(self._of(volume.name)),
                clients=self.open.get(volume.name, 0),
                flattening=self.looks[volume.name].pop() if self.looks.get(volume.name) else None,
            )
            for volume in self._volumes.values()
        ]

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        if volume is None:
            return list(self._snapshots.values())
        self._get(volume)
        return self._of(volume)

    def space_info(self) -> PoolSpace:
        member = MemberSpace(
            POOL, "/m", "left", 1 << 33, 1 << 20, 3 << 25, 1 << 25, 1 << 30, 1 << 26
        )
        return PoolSpace(
            7, 2, 1 << 33, 3 << 20, 1 << 20, 700_000, 300_000, 48_576, 4096, 10_000, 20_000,
            1 << 25, 1 << 25, 1 << 30, 1 << 26, 1 << 20, [member],
        )  # fmt: skip

    def volume_space(self, volume: str | None = None) -> list[VolumeSpace]:
        names = [*self._volumes] if volume is None else [self._get(volume).name]
        lines = []
        for name in names:
            lines.append(VolumeSpace(name, 1 << 30, 3 << 20, 1 << 20, 700_000, 348_576, 5, 9, 7))
            lines += [
                VolumeSpace(f"{name}@{one.name}", 1 << 30, 1 << 20, 1 << 19, 0, 1 << 19, 6, 0, 7)
                for one in self._of(name)
            ]
        return lines

    async def checkpoint(self) -> None:
        self.calls.append(("checkpoint",))

    def tree(self) -> list[TreeNode]:
        nodes = [
            TreeNode(one.name, NodeKind.VOLUME, one.origin, one.size_bytes, one.created)
            for one in self._volumes.values()
        ]
        for one in self._snapshots.values():
            name = f"{one.volume}@{one.name}"
            nodes.append(
                TreeNode(name, NodeKind.SNAPSHOT, one.volume, 0, one.created, one.protected)
            )
        return [*nodes, *self.waiting]

    async def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        return self._new(name, size_bytes, None)

    async def delete_volume(self, name: str, *, snapshots: bool = False) -> None:
        self._get(name)
        for export in self.open:
            if export.partition("@")[0] == name:
                self._refuse_if_open(export)
        if self._of(name) and not snapshots:
            raise InUseError(f"volume has snapshots: {name}")
        self._snapshots = {key: one for key, one in self._snapshots.items() if key[0] != name}
        del self._volumes[name]
        self.calls.append(("delete_volume", name))

    async def resize_volume(
        self, name: str, size_bytes: int, *, shrink: bool = False
    ) -> VolumeInfo:
        self.calls += [("shrink", name)] if shrink else []
        self._volumes[name] = replace(self._get(name), size_bytes=size_bytes)
        return self._volumes[name]

    async def create_snapshot(self, volume: str, snapshot: str) -> SnapshotInfo:
        if (volume, snapshot) in self._snapshots:
            raise ExistsError(f"snapshot exists: {volume}@{snapshot}")
        info = SnapshotInfo(volume, snapshot, self._get(volume).size_bytes, 0, CREATED)
        self._snapshots[volume, snapshot] = info
        return info

    async def delete_snapshot(self, volume: str, snapshot: str) -> None:
        self._snapshot(volume, snapshot)
        self._refuse_if_open(f"{volume}@{snapshot}")
        del self._snapshots[volume, snapshot]

    async def rollback(self, volume: str, snapshot: str) -> None:
        self._snapshot(volume, snapshot)
        self._refuse_if_open(volume)
        self.calls.append(("rollback", volume, snapshot))

    async def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        self._volumes[new_name] = replace(self._get(name), name=new_name)
        del self._volumes[name]
        return self._volumes[new_name]

    async def promote(self, name: str) -> VolumeInfo:
        self.calls.append(("promote", name))
        return self._get(name)

    async def flatten(self, name: str, *, on: bool = True) -> VolumeInfo:
        """Is done after three looks at the volume."""
        volume = self._get(name)
        if volume.origin is None:
            raise InvalidArgumentError(f"{name} stands on no other volume: nothing to flatten")
        self.looks[name] = [Flattening(i, 3) for i in (2, 1, 0)] if on else []
        return replace(volume, flattening=Flattening(0, 0) if on else None)

    async def note(self, name: str, notes: dict[str, object]) -> None:
        volume, at, snapshot = name.partition("@")
        self._snapshot(volume, snapshot) if at else self._get(volume)
        self.calls.append(("note", name, str(notes)))
        if not at and "space" in notes:
            self._volumes[volume] = replace(self._get(volume), space=notes["space"])  # type: ignore[arg-type]

    async def create_snapshots(
        self, volumes: Sequence[str], snapshot: str, *, schedule: str = ""
    ) -> list[SnapshotInfo]:
        if self.raises is not None:
            raise self.raises
        for volume in volumes:
            info = await self.create_snapshot(volume, snapshot)
            created = self.now().isoformat(timespec="seconds") if schedule else CREATED
            info = replace(info, created=created, schedule=schedule)
            self._snapshots[volume, snapshot] = info
        self.calls += [("group", snapshot, *volumes)] if schedule else []
        return [self._snapshots[volume, snapshot] for volume in volumes]

    def schedules(self) -> dict[str, Schedule]:
        return dict(self._schedules)

    async def set_schedule(self, name: str, schedule: Schedule) -> None:
        self._schedules[name] = schedule

    async def remove_schedule(self, name: str) -> None:
        if name not in self._schedules:
            raise NotFoundError(f"no schedule is called {name!r}")
        del self._schedules[name]

    async def rename_snapshot(self, volume: str, snapshot: str, new_name: str) -> SnapshotInfo:
        info = replace(self._snapshot(volume, snapshot), name=new_name)
        del self._snapshots[volume, snapshot]
        self._snapshots[volume, new_name] = info
        return info

    async def clone(self, volume: str, snapshot: str | None, new_name: str) -> VolumeInfo:
        if snapshot is None:
            return self._new(new_name, self._get(volume).size_bytes, volume)
        source = self._snapshot(volume, snapshot)
        return self._new(new_name, source.size_bytes, f"{volume}@{snapshot}")

    def connect(self, export: str) -> None:
        self.open[export] = self.open.get(export, 0) + 1

    def protect(self, name: str) -> None:
        volume, at, snapshot = name.partition("@")
        if at:
            key = volume, snapshot
            self._snapshots[key] = replace(self._snapshots[key], protected=True)
        else:
            self._volumes[volume] = replace(self._volumes[volume], protected=True)

    async def send(
        self, name: str, *, since: str | None = None, resume: str | None = None
    ) -> Outgoing:
        raise UnsupportedError("there is nothing in here")

    def receive(
        self, volume: str, snapshot: str | None = None, *, discard: bool = False
    ) -> Incoming:
        raise UnsupportedError("there is no room in here")

    def label(self, volume: str, **labels: str) -> None:
        self._volumes[volume] = replace(self._volumes[volume], labels=labels)

    def disconnect(self, export: str) -> None:
        self.open[export] = self.open.get(export, 1) - 1

    def _refuse_if_open(self, export: str) -> None:
        if self.open.get(export):
            raise InUseError(f"{export} has clients")

    def _new(self, name: str, size_bytes: int, origin: str | None) -> VolumeInfo:
        if self.raises is not None:
            raise self.raises
        if name in self._volumes:
            raise ExistsError(f"volume exists: {name}")
        self._volumes[name] = VolumeInfo(name, size_bytes, origin, 0, 0, CREATED)
        return self._volumes[name]

    def _get(self, name: str) -> VolumeInfo:
        if name not in self._volumes:
            raise NotFoundError(f"no such volume: {name}")
        return self._volumes[name]

    def _of(self, volume: str) -> list[SnapshotInfo]:
        return [one for one in self._snapshots.values() if one.volume == volume]

    def _snapshot(self, volume: str, snapshot: str) -> SnapshotInfo:
        if (volume, snapshot) not in self._snapshots:
            raise NotFoundError(f"no such snapshot: {volume}@{snapshot}")
        return self._snapshots[volume, snapshot]


def client_info(number: int, export: str | None, size_bytes: int = 4096) -> ClientInfo:
    return ClientInfo(
        number,
        f"unix:pid={number}",
        1000,
        [],
        False,
        export,
        size_bytes,
        False,
        CREATED,
        1,
        2,
        3,
        4,
    )


class FakeClients:
    """Clients without connections, in a list; each keeps its export of `pool` in use."""

    def __init__(self, pool: FakePool) -> None:
        self.connected: list[ClientInfo] = []
        self.held: list[Callable[[str], bool]] = []
        self._pool = pool

    def connect(self, number: int, export: str, size_bytes: int = 4096) -> None:
        self.connected.append(client_info(number, export, size_bytes))
        self._pool.connect(export)

    def clients(self) -> list[ClientInfo]:
        return list(self.connected)

    def exports(self) -> list[ExportInfo]:
        names = sorted({one.export for one in self.connected if one.export is not None})
        return [ExportInfo(name, 1, 5, 6, 7, 8) for name in names]

    async def disconnect(
        self, chosen: Callable[[ClientInfo], bool], reason: str
    ) -> list[ClientInfo]:
        gone = [one for one in self.connected if chosen(one)]
        self.connected = [one for one in self.connected if one not in gone]
        for one in gone:
            if one.export is not None:
                self._pool.disconnect(one.export)
        return gone

    @contextmanager
    def holding(self, concerns: Callable[[str], bool]) -> Iterator[None]:
        self.held.append(concerns)
        try:
            yield
        finally:
            self.held.remove(concerns)


class FakeMembers:
    """Records the calls, and refuses a file called `data` without `force`."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    async def add(
        self, path: Path, size_bytes: int | None, host: str, *, force: bool
    ) -> MemberInfo:
        self.calls.append(("add", str(path), size_bytes, host, force))
        if path.name == "data" and not force:
            raise RefusedError(f"{path} might hold data; give it up: --force")
        return self._info(str(path), size_bytes or 1 << 34, host)

    async def grow(self, name: str, size_bytes: int | None) -> MemberInfo:
        self.calls.append(("grow", name, size_bytes))
        return self._info(name, size_bytes or 1 << 35, "local")

    def _info(self, name: str, size_bytes: int, host: str) -> MemberInfo:
        return MemberInfo(POOL, name, host, MemberState.IN_SYNC, size_bytes, 9, 9, 0, 0, 0)


@dataclass
class Served:
    """A fake pool behind the real API on a real socket."""

    pool: FakePool
    members: FakeMembers
    clients: FakeClients
    home: Home
    scheduler: Scheduler


def daemon_info(home: Home) -> DaemonInfo:
    return DaemonInfo("0.0", 42, str(home.path), [unix_endpoint(home.nbd_socket)])
