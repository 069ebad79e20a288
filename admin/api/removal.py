"""Deletes volumes and snapshots and rolls volumes back, with regard to their clients.

A change is refused while there are clients, with a message that names them, or disconnects them
first. In that case, a client that connects again meanwhile waits until the change is over, and
then opens the result.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from admin.api.interfaces import ClientControl
from admin.api.values import ClientInfo
from admin.names import SnapshotName
from storage.errors import InUseError, NotFoundError
from storage.info import SnapshotInfo, VolumeInfo
from storage.volumes.management import Management

T = TypeVar("T")

TRIES_MAX = 100
"""Each try but the last meets a client that is just asking for the export's size. That takes well
under a millisecond, so a second of tries is plenty."""
RETRY_S = 0.01
SHOWN_MAX = 3
"""Clients named in a message. Most volumes have one or two; a longer list is not read."""


class Changes:
    """Deletes and rolls back, and disconnects clients."""

    def __init__(self, management: Management, clients: ClientControl) -> None:
        self._management = management
        self._clients = clients

    async def delete_volume(self, name: str, *, snapshots: bool, disconnect: bool) -> None:
        """Delete a volume; with `snapshots`, its snapshots too.

        Raises:
            NotFoundError: there is no such volume.
            InUseError: it is protected, or has snapshots and `snapshots` is not set, or clients
                and `disconnect` is not set.
        """
        held = self._management.snapshots(name)
        # Refused here, before a client is disconnected for nothing.
        if held and not snapshots:
            raise InUseError(
                f"{name} has snapshots ({len(held)}); delete them first, or with it: --snapshots"
            )
        _refuse_protected(volume for volume in self._management.volumes() if volume.name == name)
        _refuse_protected(held)

        def concerns(export: str) -> bool:
            return export.partition("@")[0] == name

        await self._change(
            concerns,
            lambda: self._management.delete_volume(name, snapshots=snapshots),
            f"volume {name}",
            reason="the volume is deleted" if disconnect else None,
        )

    async def delete_snapshot(self, name: SnapshotName, *, disconnect: bool) -> None:
        """Delete a snapshot; raises as `delete_volume`."""
        held = self._management.snapshots(name.volume)
        _refuse_protected(one for one in held if one.name == name.snapshot)
        await self._change(
            lambda export: export == str(name),
            lambda: self._management.delete_snapshot(name.volume, name.snapshot),
            f"snapshot {name}",
            reason="the snapshot is deleted" if disconnect else None,
        )

    async def rollback(self, name: SnapshotName, *, disconnect: bool) -> None:
        """Roll a volume back to a snapshot; raises as `delete_volume`."""
        await self._change(
            lambda export: export == name.volume,
            lambda: self._management.rollback(name.volume, name.snapshot),
            f"volume {name.volume}",
            reason=f"the volume goes back to {name}" if disconnect else None,
        )

    async def disconnect(
        self, *, numbers: list[int] | None, export: str | None
    ) -> list[ClientInfo]:
        """Disconnect clients by number, those of an export, or all if neither is given.

        Raises:
            NotFoundError: no client has one of the numbers; then no client is disconnected.
        """
        if numbers is not None:
            known = {client.number for client in self._clients.clients()}
            for number in numbers:
                if number not in known:
                    raise NotFoundError(
                        f"no client has the number {number}; see: cenote client list"
                    )
        return await self._clients.disconnect(
            lambda client: (
                (numbers is None or client.number in numbers)
                and (export is None or client.export == export)
            ),
            "an administrator disconnects it",
        )

    async def _change(
        self,
        concerns: Callable[[str], bool],
        act: Callable[[], Awaitable[T]],
        what: str,
        *,
        reason: str | None,
    ) -> T:
        """Do `act`; with a `reason`, disconnect clients of exports of which `concerns` is true."""

        def in_the_way(client: ClientInfo) -> bool:
            return client.export is not None and concerns(client.export)

        if reason is None:
            try:
                return await act()
            except InUseError as error:
                using = [client for client in self._clients.clients() if in_the_way(client)]
                raise InUseError(_refusal(what, using) if using else str(error)) from error
        with self._clients.holding(concerns):
            for _ in range(TRIES_MAX - 1):
                try:  # first: if it fails for another reason, no client is disconnected
                    return await act()
                except InUseError:
                    if not await self._clients.disconnect(in_the_way, reason):
                        await trio.sleep(RETRY_S)
            return await act()


def _refuse_protected(items: Iterable[VolumeInfo | SnapshotInfo]) -> None:
    for item in items:
        if item.protected:
            name = f"{item.volume}@{item.name}" if isinstance(item, SnapshotInfo) else item.name
            raise InUseError(f"{name} is protected, take that off first")


def _refusal(what: str, using: list[ClientInfo]) -> str:
    shown = ", ".join(f"{client.number} ({client.identity})" for client in using[:SHOWN_MAX])
    more = f" and {len(using) - SHOWN_MAX} more" if len(using) > SHOWN_MAX else ""
    exports = dict.fromkeys(client.export for client in using)
    commands = " && ".join(f"cenote client disconnect --export {export}" for export in exports)
    return (
        f"{what} is in use by client {shown}{more}; stop it, disconnect it ({commands}), "
        "or repeat with --disconnect"
    )
