"""The NBD server of a daemon: its sockets, TLS, access rules and clients."""

import ipaddress
import logging
import ssl
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from socket import AF_UNIX

import trio

from admin.api.values import ClientInfo, ExportInfo, tcp_endpoint, unix_endpoint
from admin.config.nbd import NbdConfig
from admin.daemon.exports import ExportingPool, PoolExports
from admin.errors import ConfigError, HomeError
from admin.home import Home
from nbd.errors import TlsError
from nbd.server.access import AccessRule, decide
from nbd.server.connection import Client
from nbd.server.handshake import Tls
from nbd.server.listeners import Listener, TlsTerms, listen_tcp, listen_unix
from nbd.server.server import Server
from nbd.tls import server_context

_log = logging.getLogger("cenote.daemon")

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def load_tls(config: NbdConfig, file: Path | None) -> ssl.SSLContext | None:
    """Load the certificates and the key for TLS; None when TLS is off.

    Args:
        file: the path of the configuration, for messages.

    Raises:
        ConfigError: a certificate or key is missing or cannot be used.
    """
    files = config.files
    if files is None:
        return None
    try:
        return server_context(files.certificate, files.key, files.client_ca)
    except TlsError as error:
        raise ConfigError(f"{file}: nbd: {error}") from error


class NbdService:
    """Serves a pool's volumes and snapshots on the sockets that the configuration asks for.

    Args:
        context: from `load_tls`.
    """

    def __init__(
        self,
        pool: ExportingPool,
        config: NbdConfig,
        home: Home,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._home = home
        self._context = context
        self._exports = PoolExports(pool)
        self._server = Server(
            self._exports,
            config.limits,
            describe=_describe,
            access=partial(decide, config.rules),
        )

    async def run(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop` is called.

        The task starts with the list of endpoints, once clients can connect.

        Raises:
            HomeError: a socket cannot be made.
        """
        listeners = await self._listen()
        _warn_of_reach(self._config, self._home, listeners)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._server.serve, listeners)
            task_status.started(self._endpoints(listeners))

    def stop(self) -> None:
        """Take no more clients; `run` returns after the requests in flight, within `grace_s`."""
        self._server.stop()

    # -- clients: `ClientControl` of `admin.api.interfaces`

    def clients(self) -> list[ClientInfo]:
        """The connections, oldest first."""
        return [_info(client) for client in self._server.clients()]

    def exports(self) -> list[ExportInfo]:
        """The counts of each export that had clients, sorted by name."""
        using = [client.export for client in self._server.clients()]
        return [
            ExportInfo(
                name,
                using.count(name),
                counters.requests,
                counters.read_bytes,
                counters.written_bytes,
                counters.errors,
            )
            for name, counters in sorted(self._server.counters().items())
        ]

    async def disconnect(
        self, chosen: Callable[[ClientInfo], bool], reason: str
    ) -> list[ClientInfo]:
        """End connections; see `admin.api.interfaces`."""
        gone = await self._server.disconnect(lambda client: chosen(_info(client)), reason)
        return [_info(client) for client in gone]

    def holding(self, concerns: Callable[[str], bool]) -> AbstractContextManager[None]:
        """Make clients that ask for these exports wait; see `admin.api.interfaces`."""
        return self._exports.holding(concerns)

    # -- sockets

    async def _listen(self) -> list[Listener]:
        config, listeners = self._config, list[Listener]()
        where = str(self._home.nbd_socket)
        try:
            if config.unix:
                terms = TlsTerms(config.unix_tls, self._context)
                mode = config.unix_mode
                listeners.append(listen_unix(self._home.nbd_socket, terms, mode=mode))
            if config.tcp is not None:
                where = str(config.tcp)
                terms = TlsTerms(config.tls, self._context)
                # In a thread, as the lookup of a host name blocks.
                listeners += await trio.to_thread.run_sync(
                    listen_tcp, config.tcp.host, config.tcp.port, terms
                )
        except OSError as error:
            for listener in listeners:
                listener.close()
            raise HomeError(f"cannot listen on {where}: {error.strerror}") from error
        return listeners

    def _endpoints(self, listeners: Sequence[Listener]) -> list[str]:
        config, endpoints = self._config, list[str]()
        if config.unix:
            tls = config.unix_tls is Tls.REQUIRE
            endpoints.append(unix_endpoint(self._home.nbd_socket, tls=tls))
        tcp = [listener for listener in listeners if listener.sock.family != AF_UNIX]
        if config.tcp is not None and tcp:
            port = tcp[0].sock.getsockname()[1]
            endpoints.append(tcp_endpoint(config.tcp.host, port, tls=config.tls is Tls.REQUIRE))
        return endpoints


def _info(client: Client) -> ClientInfo:
    return ClientInfo(
        number=client.number,
        address=client.peer.address,
        uid=client.peer.uid,
        names=list(client.peer.names),
        tls=client.peer.secure,
        export=client.export,
        size_bytes=client.size_bytes,
        read_only=client.read_only,
        since=datetime.fromtimestamp(client.since, UTC).isoformat(timespec="seconds"),
        requests=client.counters.requests,
        read_bytes=client.counters.read_bytes,
        written_bytes=client.counters.written_bytes,
        errors=client.counters.errors,
    )


def _describe(name: str) -> str:
    return "snapshot" if "@" in name else "volume"


# -- warnings for the administrator


def _warn_of_reach(config: NbdConfig, home: Home, listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        if listener.sock.family != AF_UNIX:
            _warn_of_address(config, listener.sock.getsockname()[0])
    if config.unix and config.unix_mode & _OTHERS:
        if not home.path.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
            _log.warning(
                "nbd.unix_mode lets other users in and the directory does not: chmod o+x %s",
                home.path,
            )
        if _is_open(config.rules):
            _log.warning(
                "whoever reaches %s may use every volume that [[export]] does not restrict",
                home.nbd_socket,
            )


def _warn_of_address(config: NbdConfig, address: str) -> None:
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return
    if config.tls is not Tls.REQUIRE:
        _log.warning('data travels in the clear: address=%s; set nbd.tls = "require"', address)
    checked = config.files is not None and config.files.client_ca is not None
    if not (config.tls is Tls.REQUIRE and checked) and _is_open(config.rules):
        _log.warning(
            "whoever reaches %s may use every volume that [[export]] does not restrict; "
            "set nbd.client_ca to ask for certificates",
            address,
        )


def _is_open(rules: Sequence[AccessRule]) -> bool:
    """Whether a client without a known user or certificate may use volumes that no rule names."""
    for rule in rules:
        if "*" in rule.exports:
            return rule.certificates is None and rule.uids is None
    return True
