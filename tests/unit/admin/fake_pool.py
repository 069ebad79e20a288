"""A pool without storage: the administrative methods over dicts."""

from dataclasses import dataclass, replace
from uuid import UUID

from admin.home import Home
from admin.status import DaemonInfo, unix_endpoint
from storage.errors import ExistsError, InUseError, NotFoundError
from storage.info import MemberInfo, MemberState, PoolInfo, SnapshotInfo, VolumeInfo

POOL = UUID("12345678-1234-5678-1234-567812345678")
CREATED = "2024-05-06T07:08:09+00:00"


class FakePool:
    """The administrative methods of a pool, over dicts."""

    def __init__(self) -> None:
        self._volumes: dict[str, VolumeInfo] = {}
        self._snapshots: dict[tuple[str, str], SnapshotInfo] = {}
        self.calls: list[tuple[str, ...]] = []
        self.raises: Exception | None = None

    def info(self) -> PoolInfo:
        member = MemberInfo(
            POOL, "/dev/\x1b[31mred", "[bold]left", MemberState.IN_SYNC, 1 << 33, 256, 128, 1, 2, 3
        )
        return PoolInfo(
            POOL, 1, 32 << 20, 1, "ok", 1 << 33, 1 << 32, 0, 1, 1, 1,
            len(self._volumes), len(self._snapshots), [member],
        )  # fmt: skip

    def volumes(self) -> list[VolumeInfo]:
        return [
            replace(volume, snapshots=len(self._of(volume.name)))
            for volume in self._volumes.values()
        ]

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        if volume is None:
            return list(self._snapshots.values())
        self._get(volume)
        return self._of(volume)

    async def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        return self._new(name, size_bytes, None)

    async def delete_volume(self, name: str, *, snapshots: bool = False) -> None:
        if self._get(name).clients:
            raise InUseError(f"volume has clients: {name}")
        if self._of(name) and not snapshots:
            raise InUseError(f"volume has snapshots: {name}")
        self._snapshots = {key: one for key, one in self._snapshots.items() if key[0] != name}
        del self._volumes[name]
        self.calls.append(("delete_volume", name))

    async def resize_volume(self, name: str, size_bytes: int) -> VolumeInfo:
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
        del self._snapshots[volume, snapshot]

    async def rollback(self, volume: str, snapshot: str) -> None:
        self._snapshot(volume, snapshot)
        self.calls.append(("rollback", volume, snapshot))

    async def clone(self, volume: str, snapshot: str, new_name: str) -> VolumeInfo:
        source = self._snapshot(volume, snapshot)
        return self._new(new_name, source.size_bytes, f"{volume}@{snapshot}")

    def connect(self, name: str) -> None:
        self._volumes[name] = replace(self._volumes[name], clients=1)

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


@dataclass
class Served:
    """A fake pool behind the real API on a real socket."""

    pool: FakePool
    home: Home


def daemon_info(home: Home) -> DaemonInfo:
    return DaemonInfo("0.0", 42, str(home.path), [unix_endpoint(home.nbd_socket)])
