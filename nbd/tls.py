"""TLS contexts from PEM files, with errors that name the file and the fault.

TLS 1.2 is the oldest version, 1.3 is preferred; session tickets, renegotiation and compression
are off. A server with an authority for clients accepts only clients with a certificate of that
authority. A client checks certificate and host name unless told otherwise.

`TlsSocket` runs TLS over a socket with such a context.
"""

import ssl
from pathlib import Path

from nbd.errors import TlsError
from nbd.tlssocket import TlsSocket, explain

__all__ = ["PSK_REFUSAL", "TlsSocket", "client_context", "server_context"]

PSK_REFUSAL = (
    "pre-shared keys are not supported (Python has them only from 3.13 on); use certificates"
)

_CERTIFICATES = ("BEGIN CERTIFICATE-----", "BEGIN TRUSTED CERTIFICATE-----")


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Return the TLS context of a server.

    Args:
        certificate: PEM, the server's certificate first, then the intermediate ones.
        key: PEM, without a password; may be the same file.
        client_ca: PEM, authorities of clients' certificates, which are then required.

    Raises:
        TlsError: a file is missing or unusable.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # Resuming a session gains nothing: connections last for days.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    _load_pair(context, certificate, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    ca: Path | None, certificate: Path | None, key: Path | None, verify: bool = True
) -> ssl.SSLContext:
    """Return the TLS context of a client.

    Args:
        ca: PEM, authorities of servers' certificates; the system's authorities if None.
        certificate: PEM, for servers that ask for one; comes with `key`.
        verify: False takes any certificate: that stops eavesdroppers, not impostors.

    Raises:
        TlsError: a file is missing or unusable, or `certificate` or `key` comes alone.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        _load_authorities(context, ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if (certificate is None) != (key is None):
        raise TlsError("a client certificate and its key come together: one is missing")
    if certificate is not None and key is not None:
        _load_pair(context, certificate, key)
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Python sets this option, which would make a cut connection look like a finished one.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    if not any(mark in _read(certificate, "certificate") for mark in _CERTIFICATES):
        raise TlsError(f"no certificate in PEM form in this file: path={certificate}")
    text = _read(key, "key")
    if "PRIVATE KEY-----" not in text:
        raise TlsError(f"no private key in PEM form in this file: path={key}")

    def refuse_to_ask() -> str:  # OpenSSL would ask on the terminal
        raise TlsError(
            f"key has a password, which nobody is there to type; take it off with "
            f"`openssl pkey -in {key}`: path={key}"
        )

    try:
        context.load_cert_chain(certificate, key, password=refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise TlsError(
                f"key does not belong to the certificate: key={key} certificate={certificate}"
            ) from error
        raise TlsError(
            f"certificate or key cannot be used: {explain(error)}: "
            f"certificate={certificate} key={key}"
        ) from error


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    if not any(mark in _read(path, "certificate authority") for mark in _CERTIFICATES):
        raise TlsError(f"no certificate in PEM form in this file: path={path}")
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise TlsError(
            f"certificate authority cannot be used: {explain(error)}: path={path}"
        ) from error


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise TlsError(f"{what} cannot be read: {error.strerror}: path={path}") from error
