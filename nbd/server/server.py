"""The NBD server: accepts clients, bounds their number, and stops in bounded time."""

import errno
import itertools
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import trio

from nbd.server.access import Access, Peer
from nbd.server.connection import Client, Connection, ExportSource, Service
from nbd.server.limits import Limits
from nbd.server.listeners import Listener
from nbd.server.memory import Memory
from nbd.server.pace import Activity
from nbd.server.terms import Counters

log = logging.getLogger("cenote.nbd")

ACCEPT_RETRY_S = 0.2
"""Pause when the system has no descriptor or memory for another client."""
UNIX_SEND_BYTES = 1 << 20
"""Send buffer of a Unix socket, by default 208 KiB; more means fewer wake-ups for large reads."""
NEGOTIATION_S = 1.0
"""Negotiation takes milliseconds; a longer one ends when another client finds no place."""
PAST_MAX = 4096
"""Exports whose counters outlast their clients; the least recently used is forgotten."""

_CREDENTIALS = struct.Struct("@iII")  # socket(7): struct ucred
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Server:
    """Serves exports on any number of listeners.

    Args:
        exports: opened anew for every connection.
        describe: returns an export's description, shown to clients that ask.
        access: returns the access of a client to an export; by default WRITE for all.
    """

    def __init__(
        self,
        exports: ExportSource,
        limits: Limits | None = None,
        *,
        describe: Callable[[str], str] = lambda name: "",
        access: Callable[[str, Peer], Access] = lambda name, peer: Access.WRITE,
    ) -> None:
        self._limits = limits = limits or Limits()
        memory = Memory(limits.memory_bytes_max, limits.patience_s)
        self._service = Service(exports, limits, describe, access, Activity(), memory, self._settle)
        self._connections: set[Connection] = set()
        self._numbers = itertools.count(1)
        self._past: dict[str, Counters] = {}
        self._accepting = trio.CancelScope()

    def clients(self) -> list[Client]:
        """Return the clients connected now, oldest first; their counters go on counting."""
        clients = [connection.client for connection in self._connections]
        return sorted(clients, key=lambda client: client.number)

    def counters(self) -> dict[str, Counters]:
        """Return the totals of each export since the server started."""
        totals = {name: replace(past) for name, past in self._past.items()}
        for client in self.clients():
            if client.export is not None:
                totals.setdefault(client.export, Counters()).add(client.counters)
        return totals

    async def disconnect(self, chosen: Callable[[Client], bool], reason: str) -> list[Client]:
        """End the connections of the chosen clients, with `grace_s` for their requests in flight.

        Returns these clients, once their connections have ended and no write of theirs can land.
        """
        leaving = [one for one in self._connections if chosen(one.client)]
        async with trio.open_nursery() as nursery:
            for connection in leaving:
                nursery.start_soon(connection.disconnect, reason)
        return [connection.client for connection in leaving]

    def stop(self) -> None:
        """Accept no more clients, finish requests in flight, then let `serve` return."""
        self._accepting.cancel()

    async def serve(
        self,
        listeners: Sequence[Listener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop`; cancelling it instead drops all clients at once.

        Args:
            listeners: from `nbd.server.listeners`; closed on return.
        """
        try:
            async with trio.open_nursery() as clients:
                with self._accepting:
                    async with trio.open_nursery() as acceptors:
                        for listener in listeners:
                            acceptors.start_soon(self._accept, listener, clients)
                        task_status.started()
                for listener in listeners:
                    listener.close()
                for connection in self._connections:
                    connection.stop()
                clients.cancel_scope.deadline = trio.current_time() + self._limits.grace_s
            if clients.cancel_scope.cancelled_caught:
                log.warning("clients lingered and were dropped: grace_s=%g", self._limits.grace_s)
        finally:
            for listener in listeners:
                listener.close()

    async def _settle(self, export: str) -> None:
        """End the connections to an export whose clients hung up: late writes of a client's old
        connection must not land on its new ones."""
        same = {export, ""}  # the default export may be any of them
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                name = connection.client.export
                if name is not None and (export == "" or name in same):
                    nursery.start_soon(connection.settle)

    async def _accept(self, listener: Listener, clients: trio.Nursery) -> None:
        while True:
            try:
                sock, address = listener.sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener.sock)
                continue
            except OSError as error:
                if error.errno in _NO_ROOM:
                    log.warning("client not accepted: error=%s", error)
                    await trio.sleep(ACCEPT_RETRY_S)
                # Any other error is that of a client that already left.
                await trio.lowlevel.checkpoint()
                continue
            if len(self._connections) >= self._limits.connections_max and not self._make_room():
                log.warning(
                    "client refused, too many connections: peer=%s connections=%d",
                    _peer(sock, address).address,
                    len(self._connections),
                )
                sock.close()
                continue
            clients.start_soon(self._serve_client, sock, _peer(sock, address), listener)
            await trio.lowlevel.checkpoint()

    def _make_room(self) -> bool:
        """End the longest negotiation over NEGOTIATION_S, if there is one: half-open connections
        must not keep other clients out."""
        before = trio.current_time() - NEGOTIATION_S
        slow = [one for one in self._connections if one.negotiates and one.began < before]
        if slow:
            min(slow, key=lambda one: one.began).give_way()
        return bool(slow)

    async def _serve_client(self, sock: socket.socket, peer: Peer, listener: Listener) -> None:
        client = Client(next(self._numbers), peer)
        connection = Connection(sock, client, self._service, listener.tls)
        self._connections.add(connection)
        sock.setblocking(False)
        try:
            with suppress(OSError):  # the client already left; `run` meets the error again
                _prepare(sock)
            await connection.run()
        finally:
            self._connections.discard(connection)
            if client.export is not None:
                past = self._past.pop(client.export, None) or Counters()
                past.add(client.counters)
                self._past[client.export] = past
                if len(self._past) > PAST_MAX:
                    del self._past[next(iter(self._past))]


def _prepare(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BYTES)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Detects peers that vanished, in hours by default settings.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _peer(sock: socket.socket, address: object) -> Peer:
    """Return the client of an accepted socket."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        return Peer(f"unix:pid={pid}", uid)
    assert isinstance(address, tuple)
    host, port = address[:2]
    return Peer(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
