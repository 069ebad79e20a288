"""What the control API needs of a pool, the NBD server and the scheduler.

`storage.pool.Pool`, `admin.daemon.nbd_service.NbdService` and `admin.daemon.scheduler.Scheduler`
fit these Protocols; tests bring small ones.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from typing_extensions import Buffer

from admin.api.values import ClientInfo, ExportInfo, ScheduleInfo
from storage.catalogue.schedule import Schedule
from storage.info import MemberInfo, PoolInfo, PoolSpace, VolumeSpace
from storage.volumes.management import Management


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


class PoolControl(Protocol):
    """What the control API needs of a pool; methods raise `DeviceError`s."""

    @property
    def management(self) -> Management:
        """Volumes, snapshots and schedules: the one list of what can be done with them."""
        ...

    @property
    def transfers(self) -> TransferControl:
        """Sending and receiving snapshots."""
        ...

    def info(self) -> PoolInfo:
        """The state of the pool and its members."""
        ...

    def space_info(self) -> PoolSpace:
        """Space of the pool and its members, as of the last checkpoint."""
        ...

    def volume_space(self, volume: str | None = None) -> list[VolumeSpace]:
        """Space of all volumes or one, each followed by its snapshots."""
        ...

    async def checkpoint(self) -> None:
        """Write a checkpoint, after which the figures of space are exact."""
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
