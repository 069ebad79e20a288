"""Listening sockets, ready for `Server.serve`."""

import errno
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from nbd.server.handshake import Tls

BACKLOG = 128
"""Clients that may wait to be accepted; a host that restarts all its guests at once fits."""


@dataclass(frozen=True, slots=True)
class TlsTerms:
    """Whether clients may or must begin TLS, and how; `context` is None only when it is off."""

    policy: Tls = Tls.OFF
    context: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, and the TLS terms for its clients."""

    sock: socket.socket
    tls: TlsTerms = TlsTerms()

    def close(self) -> None:
        """Close the socket and remove the path of a Unix socket. Closing twice is harmless."""
        if self.sock.fileno() < 0:
            return
        path = self.sock.getsockname() if self.sock.family == socket.AF_UNIX else None
        self.sock.close()
        if path:
            Path(path).unlink(missing_ok=True)


def listen_unix(path: Path, tls: TlsTerms = TlsTerms(), *, mode: int = 0o600) -> Listener:
    """Listen on a Unix socket; a stale one is replaced.

    Args:
        mode: permissions of the socket's path; by default only this user can connect.

    Raises:
        OSError: EADDRINUSE when another process listens there; or as `bind`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            _remove_stale(path)
        mask = os.umask(0o777 & ~mode)  # before a chmod, any user could connect
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        return Listener(_listen(sock), tls)
    except BaseException:
        sock.close()
        raise


def listen_tcp(host: str, port: int, tls: TlsTerms = TlsTerms()) -> list[Listener]:
    """Listen on every address of `host`; port 0 takes a free one, the same for all.

    Raises:
        OSError: the name does not resolve, or as `bind`.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            port = sock.getsockname()[1]
            _listen(sock)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return [Listener(sock, tls) for sock in sockets]


def _listen(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.listen(BACKLOG)
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket on which no process listens; OSError if one does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(str(path)) == errno.ECONNREFUSED
    if not refused:
        raise OSError(errno.EADDRINUSE, "somebody listens on the socket", str(path))
    path.unlink()
