"""Two ends of TLS over a pair of sockets, for tests."""

import socket
import ssl

import trio

from nbd.errors import TlsError
from nbd.tls import TlsSocket
from tests.unit.nbd.certificates import HOST, Certificates

Pair = tuple[socket.socket, socket.socket]
Side = TlsSocket | TlsError | OSError


async def shake(
    sockets: Pair, server: ssl.SSLContext, client: ssl.SSLContext, hostname: str | None = HOST
) -> tuple[Side, Side]:
    """Return both ends after the handshake, or their errors; a failed end closes its socket, as
    the callers of `TlsSocket.handshake` do.
    """
    sides: list[Side] = [OSError(), OSError()]

    async def one(index: int, context: ssl.SSLContext, hostname: str | None) -> None:
        try:
            sides[index] = await TlsSocket.handshake(
                sockets[index], context, server_side=not index, hostname=hostname
            )
        except (TlsError, OSError) as error:
            sides[index] = error
            sockets[index].close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0, server, None)
        nursery.start_soon(one, 1, client, hostname)
    return sides[0], sides[1]


async def connect(sockets: Pair, made: Certificates) -> tuple[TlsSocket, TlsSocket]:
    server, client = await shake(sockets, made.server(), made.client())
    assert isinstance(server, TlsSocket)
    assert isinstance(client, TlsSocket)
    return server, client


async def receive(sock: TlsSocket) -> bytes:
    """Receive the next bytes, waiting as a session does."""
    while True:
        try:
            return sock.recv(1 << 20)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
