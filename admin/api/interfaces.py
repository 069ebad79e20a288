"""Protocols of the parts that the control API serves: pool, members, schedules and NBD clients.

`storage.pool.Pool`, `admin.daemon.membership.Membership`, `admin.daemon.scheduler.Scheduler` and
`admin.daemon.nbd_service.NbdService` fit them; tests have small ones.
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
        """Use all of a member that has become larger; with `size_bytes`, enlarge its file first."""
        ...


class Outgoing(Protocol):
    """A snapshot that is being sent."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The stream, in pieces."""
        ...

    async def close(self) -> None:
        """Let go of the snapshot, which can then be deleted."""
        ...


class Incoming(Protocol):
    """A snapshot that is being received."""

    async def feed(self, data: Buffer) -> None:
        """Take the next bytes of the stream."""
        ...

    async def finish(self) -> str:
        """Make the snapshot of the whole stream, and return its name, `VOL@SNAP`."""
        ...

    async def close(self) -> None:
        """Unless the snapshot is finished, keep the part that arrived for another attempt."""
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
    """The parts of a pool that the control API needs; methods raise `DeviceError`s."""

    @property
    def management(self) -> Management:
        """All operations on volumes, snapshots and schedules."""
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
        """All schedules, with the state of their runs."""
        ...

    async def set(self, name: str, schedule: Schedule) -> ScheduleInfo:
        """Set a schedule, or replace the one of that name."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a schedule; its snapshots stay."""
        ...

    async def run_now(self, name: str) -> ScheduleInfo:
        """Make the snapshots now, and delete those that are no longer kept."""
        ...


class ClientControl(Protocol):
    """The NBD clients, and their exports."""

    def clients(self) -> list[ClientInfo]:
        """The connections, oldest first."""
        ...

    def exports(self) -> list[ExportInfo]:
        """The counts of each export that had clients, sorted by name."""
        ...

    async def disconnect(
        self, chosen: Callable[[ClientInfo], bool], reason: str
    ) -> list[ClientInfo]:
        """End the connections of the chosen clients, with a moment for requests in flight.

        Returns these clients, once no write of theirs can still reach a volume.
        """
        ...

    def holding(self, concerns: Callable[[str], bool]) -> AbstractContextManager[None]:
        """Make clients wait for exports of which `concerns` is true, until the context ends."""
        ...
