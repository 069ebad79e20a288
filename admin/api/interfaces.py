"""What the control API needs of a pool, the NBD server and the scheduler. `storage.pool.Pool`,
`admin.daemon.nbd_service.NbdService` and `admin.daemon.scheduler.Scheduler` have it; tests bring
small ones.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from typing_extensions import Buffer

from admin.api.values import ClientInfo, ExportInfo, ScheduleInfo
from storage.catalogue.schedule import Schedule
from storage.info import (
    MemberInfo,
    PoolInfo,
    PoolSpace,
    SnapshotInfo,
    TreeNode,
    VolumeInfo,
    VolumeSpace,
)


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

    def tree(self) -> list[TreeNode]:
        """Volumes, snapshots and clones, each with what it is shown under."""
        ...

    async def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty volume."""
        ...

    async def delete_volume(self, name: str, *, snapshots: bool = False) -> None:
        """Remove a volume that has no clients; with `snapshots`, also those it has."""
        ...

    async def resize_volume(
        self, name: str, size_bytes: int, *, shrink: bool = False
    ) -> VolumeInfo:
        """Grow a volume, or shrink one that has no clients."""
        ...

    async def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        """Give a volume another name."""
        ...

    async def promote(self, name: str) -> VolumeInfo:
        """Give a clone the snapshots that it stands on."""
        ...

    async def flatten(self, name: str, *, on: bool = True) -> VolumeInfo:
        """Let a clone get copies of all it inherits, in the background; or stop that."""
        ...

    async def note(self, name: str, notes: dict[str, object]) -> None:
        """Change description, labels or protection of a volume or of `VOL@SNAP`."""
        ...

    async def create_snapshots(
        self, volumes: Sequence[str], snapshot: str, *, schedule: str = ""
    ) -> list[SnapshotInfo]:
        """Keep several volumes as they are at one moment, maybe on behalf of a schedule."""
        ...

    async def rename_snapshot(self, volume: str, snapshot: str, new_name: str) -> SnapshotInfo:
        """Give a snapshot another name."""
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

    async def clone(self, volume: str, snapshot: str | None, new_name: str) -> VolumeInfo:
        """Make a volume that starts as the snapshot, or as the volume is now."""
        ...


class SpaceControl(Protocol):
    """Where the space of a pool is; methods raise `DeviceError`s."""

    def space_info(self) -> PoolSpace:
        """Of the pool and its members, as of the last checkpoint."""
        ...

    def volume_space(self, volume: str | None = None) -> list[VolumeSpace]:
        """Of all volumes or one, each followed by its snapshots."""
        ...

    async def checkpoint(self) -> None:
        """Make the figures exact."""
        ...


class MemberControl(Protocol):
    """Adding and growing members; methods raise `DeviceError`s and `AdminError`s."""

    async def add(
        self, path: Path, size_bytes: int | None, host: str, *, force: bool
    ) -> MemberInfo:
        """Make a file or disk a member."""
        ...

    async def grow(self, name: str, size_bytes: int | None) -> MemberInfo:
        """Use all of a member that has become larger."""
        ...


class Outgoing(Protocol):
    """A snapshot that is being sent."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The stream, in pieces."""
        ...

    async def close(self) -> None:
        """Let go of the snapshot."""
        ...


class Incoming(Protocol):
    """A snapshot that is being received."""

    async def feed(self, data: Buffer) -> None:
        """Take more of the stream."""
        ...

    async def finish(self) -> str:
        """Make the snapshot of all that was fed, and return its name, `VOL@SNAP`."""
        ...

    async def close(self) -> None:
        """Keep what arrived for another attempt, unless it is finished."""
        ...


class TransferControl(Protocol):
    """Sending and receiving snapshots; methods raise `DeviceError`s."""

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """All snapshots, or those of one volume."""
        ...

    async def send(
        self, name: str, *, since: str | None = None, resume: str | None = None
    ) -> Outgoing:
        """Begin to send a snapshot, or its difference to another, or the rest of it."""
        ...

    def receive(
        self, volume: str, snapshot: str | None = None, *, discard: bool = False
    ) -> Incoming:
        """Begin to receive a snapshot of a volume."""
        ...


class ScheduleControl(Protocol):
    """The schedules of automatic snapshots; methods raise `DeviceError`s."""

    def infos(self) -> list[ScheduleInfo]:
        """All schedules, and what became of them."""
        ...

    async def set(self, name: str, schedule: Schedule) -> ScheduleInfo:
        """Set a schedule, or change all of it."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a schedule; its snapshots stay."""
        ...

    async def run_now(self, name: str) -> ScheduleInfo:
        """Make a snapshot now, and delete what is no longer kept."""
        ...


class ClientControl(Protocol):
    """The NBD clients, and their exports."""

    def clients(self) -> list[ClientInfo]:
        """Who is connected now, oldest first."""
        ...

    def exports(self) -> list[ExportInfo]:
        """What was done with each export that had clients, by name."""
        ...

    async def disconnect(
        self, chosen: Callable[[ClientInfo], bool], reason: str
    ) -> list[ClientInfo]:
        """End connections, with a moment for requests in flight. Returns who they were, once
        nothing of them is left and no write of theirs can land.
        """
        ...

    def holding(self, concerns: Callable[[str], bool]) -> AbstractContextManager[None]:
        """Let clients that ask for these exports wait as long as the context lasts."""
        ...
