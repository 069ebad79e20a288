"""TLS over a connected socket, with the interface of the plain socket.

`TlsSocket` replaces a non-blocking socket: `recv_into`, `sendmsg` and so on do at once what is
possible or raise BlockingIOError, and the caller then waits on the same descriptor. OpenSSL
works on buffers in memory between caller and socket, so no call here blocks or hides a wait.

A caller must respect two differences from a plain socket:

- Received bytes may be in memory, decrypted or not, while the descriptor is not readable.
  Receive until BlockingIOError before waiting: then no such bytes are left.
- Encrypted bytes cannot be taken back. Bytes count as sent only when their ciphertext is in
  the kernel: until then `sendmsg` raises BlockingIOError, and the next call must begin with
  the same bytes. A count that `sendmsg` returned is final.

A connection that ends without close_notify is an error, not an end of the stream.
"""

import errno
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import trio
from typing_extensions import Buffer

from nbd.errors import TlsError

ENCRYPT_BYTES_MAX = 256 << 10
"""Most bytes that one call encrypts, and that may wait for the kernel: about a socket's buffer."""
RECEIVE_BYTES = 64 << 10
"""Ciphertext taken from the kernel at once: four whole records."""
CONTROL_BYTES_MAX = 64 << 10
"""Bytes of answers to key updates that may wait for the peer: thousands, where none is usual."""

_NO_TLS = "the peer does not speak TLS"
_OLD_TLS = "no common version of TLS: 1.2 is the oldest accepted"
_REASONS = {
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "HTTPS_PROXY_REQUEST": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "BAD_RECORD_TYPE": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "UNSUPPORTED_PROTOCOL": _OLD_TLS,
    "NO_PROTOCOLS_AVAILABLE": _OLD_TLS,
    "TLSV1_ALERT_PROTOCOL_VERSION": _OLD_TLS,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client shows no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server wants a client certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority of our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
}
"""OpenSSL's names of failures, in words for an administrator."""


class TlsSocket:
    """A connected socket after a TLS handshake; made by `handshake`.

    Raises, from receiving and sending: BlockingIOError as the module says, ConnectionResetError
    when the connection ends without close_notify, OSError for any other failure. After a
    failure the connection cannot be used any more.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        hostname: str | None,
    ) -> None:
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=hostname
        )
        self._leaving = memoryview(b"")
        """Ciphertext that goes to the kernel before the content of `_outgoing`."""
        self._owed = 0
        """Plain bytes that are encrypted, but not yet counted as sent."""
        self._failure: OSError | None = None

    @classmethod
    async def handshake(
        cls,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        hostname: str | None = None,
    ) -> "TlsSocket":
        """Run the TLS handshake. No byte of the peer's TLS stream may have been received before.

        The caller owns the socket until this returns, and closes it on failure or cancellation.

        Args:
            sock: connected and non-blocking.
            hostname: the name that the server's certificate must carry; for a client only.

        Raises:
            TlsError: the peers share no TLS settings, or one refuses the other's certificate.
            OSError: the connection broke.
        """
        if not server_side and context.check_hostname and not hostname:
            raise TlsError("a host name is needed to check the server's certificate against")
        try:
            self = cls(sock, context, server_side=server_side, hostname=hostname)
        except ValueError as error:
            raise TlsError(f"not a host name: name={hostname!r}") from error
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._push_all()
                await self._pull_some()
            except ssl.SSLError as error:
                # Send the alert that tells the peer why, as far as the socket takes it.
                self._push_gently()
                raise TlsError(f"TLS handshake failed: {explain(error)}") from error
            else:
                await self._push_all()
                return self

    # -- the interface of a socket

    @property
    def family(self) -> int:
        """The address family of the plain socket."""
        return self._sock.family

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._sock.fileno()

    def version(self) -> str:
        """The version agreed on, such as "TLSv1.3"."""
        return self._tls.version() or ""

    def peer_names(self) -> list[str]:
        """Common name and DNS names of the peer's certificate; none unless it was verified."""
        # typeshed's type of this dictionary is too wide to work with.
        certificate: dict[str, Any] = self._tls.getpeercert() or {}
        subject = dict(pair for pairs in certificate.get("subject", ()) for pair in pairs)
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
        if "commonName" in subject:
            names.insert(0, subject["commonName"])
        return list(dict.fromkeys(names))

    def recv_into(self, buffer: Buffer, /) -> int:
        """Receive the bytes that are there; return their number, 0 after close_notify."""
        view = memoryview(buffer).cast("B")
        got = 0
        # OpenSSL gives one record at a time: go on while whole ones are at hand.
        while got < len(view):
            count = self._decrypt(view[got:])
            if count is None:
                if got:
                    break
                self._push_control()
                self._pull()
            elif count:
                got += count
            else:
                break
        if not got and self._failure is not None:
            self._push_gently()
            raise self._failure
        return got

    def recv(self, size: int, /) -> bytes:
        """Receive at most `size` bytes; none after close_notify."""
        data = bytearray(size)
        return bytes(memoryview(data)[: self.recv_into(data)])

    def send(self, data: Buffer, /) -> int:
        """Send one buffer as `sendmsg` does."""
        return self.sendmsg([data])

    def sendmsg(self, buffers: Iterable[Buffer], /) -> int:
        """Send the first bytes of `buffers`, at most ENCRYPT_BYTES_MAX; return their number. After
        BlockingIOError, the next call must begin with the same bytes.
        """
        if not self._owed:
            self._push()
            self._encrypt(_gather(buffers))
        self._push()
        sent, self._owed = self._owed, 0
        return sent

    def close(self) -> None:
        """Send close_notify if the kernel takes it now, and close the socket."""
        if self._sock.fileno() >= 0:
            with suppress(ssl.SSLError):  # as usual: the peer's close_notify is not awaited
                self._tls.unwrap()
            self._push_gently()
        self._sock.close()

    # -- between OpenSSL and the kernel

    def _decrypt(self, view: memoryview) -> int | None:
        """Decrypt received bytes into `view`; return their number, None when more must be
        received, 0 at the end. A failure is kept and returns 0, so that bytes before it count.
        """
        if self._failure is not None:
            return 0
        try:
            count: Any = self._tls.read(len(view), view)  # typeshed: bytes, which it is not
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return 0
        except ssl.SSLError as error:
            self._failure = _broken(error)
            return 0
        return int(count)

    def _encrypt(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            try:
                count = self._tls.write(view)  # one record
            except ssl.SSLError as error:
                raise _broken(error) from error
            self._owed += count
            view = view[count:]

    def _push(self) -> None:
        """Hand all ciphertext to the kernel, or raise BlockingIOError with the rest kept."""
        while self._leaving or self._outgoing.pending:
            if not self._leaving:
                self._leaving = memoryview(self._outgoing.read())
            self._leaving = self._leaving[self._sock.send(self._leaving) :]

    def _push_gently(self) -> None:
        with suppress(OSError):
            self._push()

    def _push_control(self) -> None:
        """Send answers that OpenSSL made while receiving; they may wait for the next `sendmsg`."""
        self._push_gently()  # a connection that broke may still hold received bytes
        if self._outgoing.pending > ENCRYPT_BYTES_MAX + CONTROL_BYTES_MAX:
            raise OSError(errno.EPROTO, "peer does not read what it asks for")

    async def _push_all(self) -> None:
        while True:
            try:
                return self._push()
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)

    def _pull(self) -> None:
        """Take ciphertext from the kernel, or raise BlockingIOError."""
        data = self._sock.recv(RECEIVE_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _pull_some(self) -> None:
        while True:
            try:
                return self._pull()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)


def explain(error: ssl.SSLError) -> str:
    """Return the failure in words, without OpenSSL's decoration."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused: {error.verify_message.rstrip('.')}"
    if _is_cut(error):
        return "the peer went away"
    reason = error.reason or ""
    return _REASONS.get(reason) or reason.replace("_", " ").lower() or str(error)


def _is_cut(error: ssl.SSLError) -> bool:
    # The form of this error depends on the versions of Python and OpenSSL.
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


def _broken(error: ssl.SSLError) -> OSError:
    if _is_cut(error):
        return ConnectionResetError(
            errno.ECONNRESET, "TLS connection was cut: the peer did not say goodbye"
        )
    return OSError(errno.EPROTO, f"TLS failed: {explain(error)}")


def _gather(buffers: Iterable[Buffer]) -> Buffer:
    """Return the first ENCRYPT_BYTES_MAX of the buffers as one, for fewer TLS records."""
    parts, room = [], ENCRYPT_BYTES_MAX
    for buffer in buffers:
        part = memoryview(buffer).cast("B")[:room]
        parts.append(part)
        room -= len(part)
        if not room:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)
