"""Volumes and snapshots as NBD exports: `NAME`, and the read-only `NAME@SNAP`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import trio

from admin.names import check_name, parse_snapshot
from blockdev.device import BlockDevice
from nbd.errors import UnknownExportError
from storage.errors import InvalidArgumentError, NotFoundError
from storage.volumes.management import Management


class ExportingPool(Protocol):
    """The parts of a pool that exports need."""

    @property
    def management(self) -> Management:
        """Lists volumes and snapshots."""
        ...

    def open_export(self, name: str) -> BlockDevice:
        """A new handle on `NAME` or `NAME@SNAP`; raises NotFoundError."""
        ...


class PoolExports:
    """The pool's volumes and snapshots, as the NBD server asks for them."""

    def __init__(self, pool: ExportingPool) -> None:
        self._pool = pool
        self._held: dict[trio.Event, Callable[[str], bool]] = {}

    @contextmanager
    def holding(self, concerns: Callable[[str], bool]) -> Iterator[None]:
        """Make `open` wait for names of which `concerns` is true, until the context ends.

        The time that a client has to negotiate bounds its wait.
        """
        over = trio.Event()
        self._held[over] = concerns
        try:
            yield
        finally:
            del self._held[over]
            over.set()

    def names(self) -> Sequence[str]:
        """Volumes, then snapshots; without volumes that are still being received."""
        volumes = sorted(
            one.name for one in self._pool.management.volumes() if one.receiving is None
        )
        snapshots = sorted(f"{one.volume}@{one.name}" for one in self._pool.management.snapshots())
        return volumes + snapshots

    async def open(self, name: str) -> BlockDevice:
        """Open a new handle for one connection.

        Raises:
            UnknownExportError: there is no such volume or snapshot, or the name is not one.
            DeviceError: it cannot be opened now.
        """
        try:
            if "@" in name:
                parse_snapshot(name)
            else:
                check_name(name, "export name")
            while (over := self._holder(name)) is not None:
                await over.wait()
            return self._pool.open_export(name)
        except (NotFoundError, InvalidArgumentError) as error:
            raise UnknownExportError(str(error)) from error

    def _holder(self, name: str) -> trio.Event | None:
        return next((over for over, concerns in self._held.items() if concerns(name)), None)
