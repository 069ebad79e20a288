"""What the control API needs of a pool. `storage.pool.Pool` has it; tests bring a small one."""

from typing import Protocol

from storage.info import PoolInfo, SnapshotInfo, VolumeInfo


class PoolControl(Protocol):
    """The administrative side of a pool; methods raise `DeviceError`s."""

    def info(self) -> PoolInfo:
        """The state of the pool and its members."""
        ...

    def volumes(self) -> list[VolumeInfo]:
        """All volumes."""
        ...

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """All snapshots, or those of one volume."""
        ...

    async def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty volume."""
        ...

    async def delete_volume(self, name: str, *, snapshots: bool = False) -> None:
        """Remove a volume that has no clients; with `snapshots`, also those it has."""
        ...

    async def resize_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Grow a volume."""
        ...

    async def create_snapshot(self, volume: str, snapshot: str) -> SnapshotInfo:
        """Keep the volume as it is now under a name."""
        ...

    async def delete_snapshot(self, volume: str, snapshot: str) -> None:
        """Remove a snapshot; the volume keeps its content."""
        ...

    async def rollback(self, volume: str, snapshot: str) -> None:
        """Make the volume what the snapshot is."""
        ...

    async def clone(self, volume: str, snapshot: str, new_name: str) -> VolumeInfo:
        """Make a volume that starts as the snapshot."""
        ...
