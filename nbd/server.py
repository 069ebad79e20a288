"""The NBD server: accepts clients, counts them, and stops in bounded time."""

import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from nbd.connection import Client, Connection, ExportSource
from nbd.limits import Limits
from nbd.listeners import close_listener
from nbd.pace import Activity

log = logging.getLogger("cenote.nbd")

ACCEPT_RETRY_S = 0.2
"""Pause when the system has no descriptor or memory for another client."""
UNIX_SEND_BYTES = 1 << 20
"""A Unix socket holds 208 KiB by default; more means fewer wake-ups for large reads."""

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Server:
    """Serves exports on any number of listeners.

    Args:
        exports: opened anew for every connection.
        describe: returns an export's description, shown to clients that ask.
    """

    def __init__(
        self,
        exports: ExportSource,
        limits: Limits | None = None,
        *,
        describe: Callable[[str], str] = lambda name: "",
    ) -> None:
        self._exports = exports
        self._limits = limits or Limits()
        self._describe = describe
        self._connections: set[Connection] = set()
        self._activity = Activity()
        self._accepting = trio.CancelScope()

    def clients(self) -> list[Client]:
        """Return the clients connected now; their counters go on counting."""
        return [connection.client for connection in self._connections]

    def stop(self) -> None:
        """Accept no more clients, finish what is in flight, then let `serve` return."""
        self._accepting.cancel()

    async def serve(
        self,
        listeners: Sequence[socket.socket],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop`; cancelling it instead drops all clients at once.

        Args:
            listeners: from `nbd.listeners`; closed on return.
        """
        try:
            async with trio.open_nursery() as clients:
                with self._accepting:
                    async with trio.open_nursery() as acceptors:
                        for listener in listeners:
                            acceptors.start_soon(self._accept, listener, clients)
                        task_status.started()
                for listener in listeners:
                    close_listener(listener)
                for connection in self._connections:
                    connection.stop()
                clients.cancel_scope.deadline = trio.current_time() + self._limits.grace_s
            if clients.cancel_scope.cancelled_caught:
                log.warning("clients lingered and were dropped: grace_s=%g", self._limits.grace_s)
        finally:
            for listener in listeners:
                close_listener(listener)

    async def _accept(self, listener: socket.socket, clients: trio.Nursery) -> None:
        while True:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)
                continue
            except OSError as error:
                if error.errno in _NO_ROOM:
                    log.warning("client not accepted: error=%s", error)
                    await trio.sleep(ACCEPT_RETRY_S)
                # Anything else is the failure of a client that already left.
                await trio.lowlevel.checkpoint()
                continue
            if len(self._connections) >= self._limits.connections_max:
                log.warning(
                    "client refused, too many connections: peer=%s connections=%d",
                    _peer_name(sock, address),
                    len(self._connections),
                )
                sock.close()
                continue
            clients.start_soon(self._serve_client, sock, _peer_name(sock, address))
            await trio.lowlevel.checkpoint()

    async def _serve_client(self, sock: socket.socket, peer: str) -> None:
        connection = Connection(
            sock, peer, self._exports, self._limits, self._describe, self._activity
        )
        self._connections.add(connection)
        sock.setblocking(False)
        try:
            with suppress(OSError):  # of a client that already left; `run` meets it again
                _prepare(sock)
            await connection.run()
        finally:
            self._connections.discard(connection)


def _prepare(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BYTES)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Finds peers that vanished without a word, in hours by default settings.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _peer_name(sock: socket.socket, address: object) -> str:
    """Return who is at the other end, in words for a log."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return f"unix:pid={int.from_bytes(credentials[:4], sys.byteorder)}"
    assert isinstance(address, tuple)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
