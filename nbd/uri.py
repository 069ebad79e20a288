"""NBD URIs: the address of a server, the export, and how TLS checks the server.

Source: doc/uri.md of the NBD project. Of libnbd's TLS parameters, the module knows those
that make sense with certificates.

    nbd://host:10809/export                 TCP, port 10809 if none is given
    nbds://host/export?tls-...              TCP, never without TLS
    nbd+unix:///export?socket=/path         Unix socket
    nbds+unix:///export?socket=/path&tls-hostname=name

    parameter         meaning
    socket            path of the Unix socket; a NUL first means the abstract namespace
    tls-certificates  directory with ca-cert.pem, client-cert.pem and client-key.pem
    tls-hostname      name that the certificate must carry, if not the host
    tls-verify-peer   0 takes any certificate
    tls-type          only `x509`
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from nbd.constants import STRING_BYTES_MAX
from nbd.errors import NbdError

DEFAULT_PORT = 10809
"""Registered at IANA."""

_SCHEMES = {
    "nbd": (False, False),
    "nbds": (True, False),
    "nbd+unix": (False, True),
    "nbds+unix": (True, True),
}
"""By scheme: whether it means TLS, and whether it means a Unix socket."""
_FORM = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?]*)(?:/([^?]*))?(?:\?(.*))?", re.I | re.S)
_MEANT = re.compile(r"nbds?(\+[a-z0-9]+)?://", re.I)
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+(?:%25[^\]]+)?\]|[^:\[\]]*)(?::([0-9]*))?", re.I)
_TLS = {"tls-certificates", "tls-verify-peer", "tls-hostname", "tls-type"}
_PSK = {"tls-psk-file", "tls-username"}


class UriError(NbdError):
    """The URI cannot be used as it is; the message says which part to change."""


@dataclass(frozen=True, slots=True)
class NbdUri:
    """A parsed URI. Either `socket` or `host` is set; `tls_*` matter only with `tls`."""

    tls: bool
    export: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    socket: str | None = None
    tls_certificates: Path | None = None
    tls_hostname: str | None = None
    tls_verify_peer: bool = True

    def address(self) -> str:
        """Return the address of the server as text, for messages."""
        if self.socket is not None:
            return f"unix:{self.socket.replace(chr(0), '@')}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        """Return the URI again, without its TLS parameters."""
        scheme = ("nbds" if self.tls else "nbd") + ("+unix" if self.socket is not None else "")
        authority, query = "", ""
        if self.socket is not None:
            query = f"?socket={quote(self.socket)}"
        else:
            authority = self.address()
        return f"{scheme}://{authority}/{quote(self.export, safe='/')}{query}"


def is_uri(text: str) -> bool:
    """Whether a text is meant as an NBD URI, rather than as a path."""
    return _MEANT.match(text) is not None


def parse_uri(text: str) -> NbdUri:
    """Parse an NBD URI.

    Raises:
        UriError: the text is no NBD URI, or asks for something that is not supported.
    """
    if "#" in text:
        raise UriError(f"a # begins what is no part of it; if it is meant, write %23: uri={text!r}")
    form = _FORM.fullmatch(text)
    if form is None:
        raise UriError(f"not an NBD URI, such as nbd://host/export: uri={text!r}")
    scheme = form[1].lower()
    tls, is_unix = _scheme(scheme)
    parameters = _parameters(form[4] or "")
    export = _decode(form[3] or "", "export name")
    if "\0" in export or len(export.encode()) > STRING_BYTES_MAX:
        raise UriError(f"export name has a NUL, or over {STRING_BYTES_MAX} bytes")
    socket = parameters.pop("socket", None)
    if is_unix:
        if not socket:
            raise UriError(f"{scheme} needs a parameter: socket=/path")
        if form[2]:
            raise UriError(f"{scheme} takes no host: write three slashes: host={form[2]!r}")
        if "\0" in socket[1:]:
            raise UriError(f"socket has a NUL that is not its first byte: socket={socket!r}")
        host, port = "", DEFAULT_PORT
    else:
        if socket is not None:
            raise UriError(f"a socket goes with nbd+unix or nbds+unix, not with {scheme}")
        host, port = _host_and_port(form[2])
    if parameters and not tls:
        raise UriError(f"TLS parameters go with nbds or nbds+unix: parameter={min(parameters)}")
    return NbdUri(tls, export, host, port, socket, *_tls(parameters))


def _scheme(scheme: str) -> tuple[bool, bool]:
    if scheme in _SCHEMES:
        return _SCHEMES[scheme]
    if scheme in ("nbd+vsock", "nbds+vsock"):
        raise UriError("AF_VSOCK is not supported; use TCP or a Unix socket")
    raise UriError(f"not the scheme of an NBD URI: scheme={scheme}")


def _host_and_port(authority: str) -> tuple[str, int]:
    if "@" in authority:
        raise UriError("user names are not supported: certificates say who we are")
    form = _AUTHORITY.fullmatch(authority)
    if form is None:
        raise UriError(f"not a host and port: authority={authority!r}")
    port = int(form[2]) if form[2] else DEFAULT_PORT
    if not 1 <= port <= 65535:
        raise UriError(f"not a port: port={port}")
    return _decode(form[1].strip("[]"), "host") or "localhost", port


def _parameters(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        raw_key, _, raw_value = pair.partition("=")
        key = _decode(raw_key, "parameter")
        if key in found:
            raise UriError(f"parameter is given twice: parameter={key}")
        if key in _PSK:
            raise UriError(f"pre-shared keys are not supported, use certificates: parameter={key}")
        if key != "socket" and key not in _TLS:
            raise UriError(f"unknown parameter: parameter={key!r}")
        found[key] = _decode(raw_value, key)
    return found


def _tls(parameters: dict[str, str]) -> tuple[Path | None, str | None, bool]:
    """Return the directory of certificates, the name to check, and whether to check."""
    kind = parameters.get("tls-type", "x509")
    if kind != "x509":
        raise UriError(f"of TLS types only x509, certificates, is supported: tls-type={kind!r}")
    verify = parameters.get("tls-verify-peer", "1").lower()
    if verify not in ("0", "1", "true", "false"):
        raise UriError(f"not 0 or 1: tls-verify-peer={verify!r}")
    directory = parameters.get("tls-certificates")
    if directory == "":
        raise UriError("tls-certificates is empty; name a directory")
    return (
        Path(directory) if directory else None,
        parameters.get("tls-hostname") or None,
        verify in ("1", "true"),
    )


def _decode(text: str, what: str) -> str:
    if re.search("%(?![0-9a-fA-F]{2})", text):
        raise UriError(f"a percent sign without two hexadecimal digits: {what}={text!r}")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise UriError(f"not UTF-8: {what}={text!r}") from None
