"""Connects to the server of a URI and negotiates."""

import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from nbd.client.handshake import Answer, ClientHandshake
from nbd.client.negotiation import Agreement, enter
from nbd.client.options import ClientOptions
from nbd.constants import Option
from nbd.errors import (
    NbdError,
    ProtocolError,
    RefusedError,
    TlsError,
    UnknownExportError,
    UnreachableError,
)
from nbd.stream import Stream
from nbd.tls import TlsSocket, client_context
from nbd.uri import NbdUri

RECEIVE_BYTES = 16 << 10
"""Per `recv` while negotiating: answers are small."""
FULL_RETRY_S = 0.02
"""Pause before another try of a Unix socket whose queue of clients is full."""
GOODBYE_S = 1.0
"""How long the answer to ABORT is waited for; some servers just hang up."""


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection that has entered an export. `sock` is the plain socket of `stream`."""

    stream: Stream
    sock: socket.socket
    agreement: Agreement


class Dialer:
    """Connects to one export, any number of times; reads certificates once, when made.

    Raises:
        TlsError: a certificate or key cannot be used.
    """

    def __init__(self, uri: NbdUri, options: ClientOptions) -> None:
        self.uri = uri
        self.options = options
        self._context = _tls_context(uri) if uri.tls else None

    async def dial(self) -> Dialed:
        """Connect, negotiate, and enter the export; when cancelled nothing stays open.

        Raises:
            UnreachableError: no connection, or no answer in time.
            NbdError: as `nbd.client.negotiation.enter`.
        """
        options = self.options
        async with self._haggling() as haggle:
            try:
                agreement = await enter(
                    haggle, self.uri.export, extended=options.extended, contexts=options.contexts
                )
            except (UnknownExportError, RefusedError):
                await haggle.abort()
                raise
            if haggle.leftovers():
                raise ProtocolError("server replies before any request")
            return Dialed(haggle.keep(), haggle.sock, agreement)

    @asynccontextmanager
    async def haggling(self) -> AsyncIterator["Haggle"]:
        """Connect, give the negotiation to the `async with` body, then send ABORT. Raises as
        `dial`."""
        async with self._haggling() as haggle:
            yield haggle
            await haggle.abort()

    @asynccontextmanager
    async def _haggling(self) -> AsyncIterator["Haggle"]:
        haggle: Haggle | None = None
        try:
            with trio.fail_after(self.options.connect_s):
                haggle = Haggle(await _connect(self.uri))
                await haggle.greet()
                if self._context is not None:
                    await haggle.start_tls(self._context, self._hostname())
                yield haggle
        except trio.TooSlowError:
            raise UnreachableError(
                f"no answer in time: server={self.uri.address()} seconds={self.options.connect_s:g}"
            ) from None
        except OSError as error:
            hint = haggle.hint() if haggle is not None else ""
            raise UnreachableError(
                f"server is not reached{hint}: server={self.uri.address()} error={_words(error)}"
            ) from error
        finally:
            if haggle is not None:
                haggle.close()

    def _hostname(self) -> str | None:
        return self.uri.tls_hostname or self.uri.host or None


class Haggle:
    """A negotiation over a socket, which it owns; a `Talk` of `nbd.client.negotiation`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fixed = False
        self._stream: Stream = sock
        self._handshake = ClientHandshake()
        self._kept = False
        self._tls_unconfirmed = False  # true from the TLS handshake to the server's next bytes

    async def greet(self) -> None:
        """Receive the greeting and answer it."""
        while not self._handshake.greeted():
            await self._receive()
        self.fixed = self._handshake.fixed

    async def start_tls(self, context: ssl.SSLContext, hostname: str | None) -> None:
        """Go on in TLS, and never in plain text.

        Raises:
            TlsError: the server has no TLS, or the handshake or its certificate fails.
        """
        if not self.fixed:
            raise TlsError("server is too old for TLS, and is not spoken to without")
        answer = await self.ask(Option.STARTTLS)
        if not answer.accepted:
            raise TlsError(f"server has no TLS, and is not spoken to without: {answer.reason()}")
        if self.leftovers():
            # An attacker between server and client could have put it there (CVE-2021-3716).
            raise ProtocolError("data in plain text behind STARTTLS")
        self._stream = await TlsSocket.handshake(
            self.sock, context, server_side=False, hostname=hostname
        )
        self._tls_unconfirmed = True

    def hint(self) -> str:
        """Guess why the server hung up, for the end of a message: with TLS 1.3 it checks our
        certificate last, and many servers then just hang up.
        """
        if not self._tls_unconfirmed:
            return ""
        return ", it may want a client certificate or not know the authority of ours"

    async def ask(self, option: Option, data: bytes = b"") -> Answer:
        """Send an option and return the answer."""
        self._handshake.ask(option, data)
        while True:
            await self._send(self._handshake.data_to_send())
            answer = self._handshake.answer()
            if answer is not None:
                return answer
            await self._receive()

    async def ask_export_name(self, name: bytes) -> tuple[int, int]:
        """Send EXPORT_NAME and return size and flags."""
        self._handshake.ask(Option.EXPORT_NAME, name)
        await self._send(self._handshake.data_to_send())
        while True:
            answer = self._handshake.export_answer()
            if answer is not None:
                return answer
            await self._receive()

    async def abort(self) -> None:
        """Send ABORT and wait up to GOODBYE_S for the answer; no error of the server is raised."""
        if self.fixed:
            with trio.move_on_after(GOODBYE_S), suppress(OSError, NbdError):
                await self.ask(Option.ABORT)

    def leftovers(self) -> bytes:
        """Return the bytes that the server sent behind its last answer."""
        return self._handshake.trailing()

    def keep(self) -> Stream:
        """Return the stream, which `close` then leaves open."""
        self._kept = True
        return self._stream

    def close(self) -> None:
        """Close the socket, unless `keep` gave it away. Closing twice is harmless."""
        if not self._kept:
            self._stream.close()
            self.sock.close()

    async def _receive(self) -> None:
        while True:
            try:
                data = self._stream.recv(RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._stream)
                continue
            if not data:
                raise UnreachableError(f"server hung up while negotiating{self.hint()}")
            self._tls_unconfirmed = False
            self._handshake.receive(data)
            # A server that sends without end must not keep the deadline from being checked.
            await trio.lowlevel.checkpoint()
            return

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._stream.send(left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._stream)
            except (BrokenPipeError, ConnectionResetError):
                return  # the server hung up; its last bytes may tell why, and are received next


def _tls_context(uri: NbdUri) -> ssl.SSLContext:
    """Return the TLS context for a URI; files in its directory have the names of libnbd."""
    if uri.socket is not None and uri.tls_verify_peer and not uri.tls_hostname:
        raise TlsError("a Unix socket has no host name to check: add tls-hostname=")
    directory = uri.tls_certificates
    if directory is None:
        return client_context(None, None, None, uri.tls_verify_peer)
    if not directory.is_dir():
        raise TlsError(f"no such directory of certificates: path={directory}")
    certificate, key = directory / "client-cert.pem", directory / "client-key.pem"
    has_pair = certificate.exists() or key.exists()
    return client_context(
        directory / "ca-cert.pem",
        certificate if has_pair else None,
        key if has_pair else None,
        uri.tls_verify_peer,
    )


async def _connect(uri: NbdUri) -> socket.socket:
    """Return a connected socket. Raises OSError of the last address that was tried."""
    if uri.socket is not None:
        return await _connect_to(socket.AF_UNIX, uri.socket)
    try:
        addresses = await trio.socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # an empty label, or one of over 63 bytes
        raise OSError(errno.EINVAL, "this can be no name of a host") from None
    last: OSError = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    deadline = trio.current_effective_deadline()
    for left, (family, _, _, _, address) in zip(
        range(len(addresses), 0, -1), addresses, strict=True
    ):
        share_s = (deadline - trio.current_time()) / left
        try:
            with trio.fail_after(share_s):
                return await _connect_to(socket.AddressFamily(family), address)
        except OSError as error:
            last = error
        except trio.TooSlowError:
            last = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    raise last


async def _connect_to(family: socket.AddressFamily, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Detects servers that vanish while the connection is idle.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        while True:
            try:
                sock.connect(address)  # type: ignore[arg-type]
            except BlockingIOError as error:
                if error.errno == errno.EAGAIN:
                    await trio.sleep(FULL_RETRY_S)
                    continue
                await trio.lowlevel.wait_writable(sock)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise OSError(failure, os.strerror(failure))
            return sock
    except BaseException:
        sock.close()
        raise


def _words(error: OSError) -> str:
    return error.strerror or str(error)
