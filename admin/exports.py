"""Volumes and snapshots as NBD exports: `NAME`, and `NAME@SNAP` for reading."""

import ipaddress
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from socket import AF_UNIX, socket
from typing import Protocol

import trio

from admin.config import NbdConfig
from admin.errors import HomeError
from admin.home import Home
from admin.names import check_name, parse_snapshot
from admin.status import ClientInfo, tcp_endpoint, unix_endpoint
from blockdev.device import BlockDevice
from nbd.errors import UnknownExportError
from nbd.limits import Limits
from nbd.listeners import close_listener, listen_tcp, listen_unix
from nbd.server import Server
from storage.errors import InvalidArgumentError, NotFoundError
from storage.info import SnapshotInfo, VolumeInfo

_log = logging.getLogger("cenote.daemon")


class ExportingPool(Protocol):
    """What exporting needs of a pool."""

    def volumes(self) -> list[VolumeInfo]:
        """All volumes."""
        ...

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """All snapshots, or those of one volume."""
        ...

    def open_export(self, name: str) -> BlockDevice:
        """A new handle on `NAME` or `NAME@SNAP`; raises NotFoundError."""
        ...


class PoolExports:
    """The pool's volumes and snapshots, in the shape the NBD server asks for."""

    def __init__(self, pool: ExportingPool) -> None:
        self._pool = pool

    def names(self) -> Sequence[str]:
        """Volumes, then snapshots."""
        volumes = sorted(volume.name for volume in self._pool.volumes())
        snapshots = sorted(f"{one.volume}@{one.name}" for one in self._pool.snapshots())
        return volumes + snapshots

    async def open(self, name: str) -> BlockDevice:
        """Open a handle of its own for one connection.

        Raises:
            UnknownExportError: there is no such volume or snapshot, or the name is not one.
            DeviceError: it cannot be opened now.
        """
        try:
            if "@" in name:
                parse_snapshot(name)
            else:
                check_name(name, "export name")
            return self._pool.open_export(name)
        except (NotFoundError, InvalidArgumentError) as error:
            raise UnknownExportError(str(error)) from error


class NbdService:
    """The NBD server of a daemon, on the sockets that the configuration asks for."""

    def __init__(self, pool: ExportingPool, config: NbdConfig, home: Home) -> None:
        self._config = config
        self._home = home
        limits = Limits(connections_max=config.connections_max)
        self._server = Server(PoolExports(pool), limits, describe=_describe)

    async def run(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop`; started with the endpoints once clients may connect.

        Raises:
            HomeError: a socket cannot be made.
        """
        listeners = await self._listen()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._server.serve, listeners)
            task_status.started(self._endpoints(listeners))

    def stop(self) -> None:
        """Take no more clients; `run` returns when those there are served, in bounded time."""
        self._server.stop()

    def clients(self) -> list[ClientInfo]:
        """Who is connected now."""
        return [
            ClientInfo(
                client.peer,
                client.export,
                datetime.fromtimestamp(client.since, UTC).isoformat(timespec="seconds"),
                client.counters.requests,
                client.counters.read_bytes,
                client.counters.written_bytes,
                client.counters.errors,
            )
            for client in self._server.clients()
        ]

    async def _listen(self) -> list[socket]:
        listeners: list[socket] = []
        where = str(self._home.nbd_socket)
        try:
            if self._config.unix:
                listeners.append(listen_unix(self._home.nbd_socket))
            if self._config.tcp is not None:
                where = str(self._config.tcp)
                # In a thread: the name may have to be looked up.
                tcp = self._config.tcp
                listeners += await trio.to_thread.run_sync(listen_tcp, tcp.host, tcp.port)
        except OSError as error:
            for listener in listeners:
                close_listener(listener)
            raise HomeError(f"cannot listen on {where}: {error.strerror}") from error
        return listeners

    def _endpoints(self, listeners: Sequence[socket]) -> list[str]:
        endpoints = [unix_endpoint(self._home.nbd_socket)] if self._config.unix else []
        tcp = [listener for listener in listeners if listener.family != AF_UNIX]
        if self._config.tcp is not None and tcp:
            _warn_of_reach(tcp)
            endpoints.append(tcp_endpoint(self._config.tcp.host, tcp[0].getsockname()[1]))
        return endpoints


def _warn_of_reach(listeners: Sequence[socket]) -> None:
    for listener in listeners:
        address = listener.getsockname()[0]
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            _log.warning("whoever reaches %s may read and write all volumes", address)


def _describe(name: str) -> str:
    return "snapshot" if "@" in name else "volume"
