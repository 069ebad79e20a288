"""The part of the configuration about NBD: sockets, TLS, limits and access rules.

    [nbd]
    unix = true                 serve on HOME/nbd.sock
    unix_mode = "0600"          of that socket; other users also need `chmod o+x HOME`
    unix_tls = "off"            "off", "allow" or "require"
    tcp = "127.0.0.1:10809"     serve on this address, too
    tls = "off"                 as unix_tls, for TCP
    certificate = "server.pem"  PEM, relative to this file; with its issuers except the root
    key = "server.key"          PEM, without a password
    client_ca = "ca.pem"        clients must show a certificate of this authority
    connections = 512           clients at once

    [nbd.limits]                the defaults suit some hundred virtual machines
    requests = 256              in flight, per connection
    bytes = "64M"               in flight, per connection
    memory = "512M"             in flight, over all connections
    request_size = "32M"        longest READ or WRITE, from 256K
    option_size = "64K"         longest option of a negotiation
    options = 1024              longest negotiation
    handshake_s = 10            for a client to choose an export
    patience_s = 10             for a client that blocks memory which other clients wait for
    grace_s = 3                 for requests in flight when a connection is ended

    [[export]]                  the first rule that matches an export decides
    name = "web*"               volumes and their snapshots; "web*@*" is snapshots only; or a list
    read_only = true
    certificates = ["web.example"]  names in the clients' certificates (CN or DNS)
    uids = [107]                users of this machine, on the Unix socket

A rule with `certificates` or `uids` admits only the clients that it names there. An export that no
rule matches may be used by every client.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from admin.config.tables import Table
from admin.sizes import GIB, KIB, MIB, TIB
from nbd.server.access import AccessRule
from nbd.server.handshake import Tls
from nbd.server.limits import PAYLOAD_BYTES_LEAST, PAYLOAD_BYTES_MAX, Limits
from nbd.tls import PSK_REFUSAL

CONNECTIONS_MAX = 4096
"""Each connection takes a file descriptor, of which a process has some thousands."""
UNIX_MODE = 0o600
_UID_MAX = (1 << 32) - 2
_PATTERN = re.compile(r"[A-Za-z0-9._+\-*?@\[\]!]+")
_FILES = ("certificate", "key", "client_ca")
_POLICIES = tuple(policy.value for policy in Tls)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to listen; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The server's certificate and key, and the authority of its clients' certificates."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class NbdConfig:
    """Sockets, TLS, limits and access rules of the NBD server."""

    unix: bool = True
    unix_mode: int = UNIX_MODE
    unix_tls: Tls = Tls.OFF
    tcp: TcpAddress | None = None
    tls: Tls = Tls.OFF
    files: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)
    rules: tuple[AccessRule, ...] = ()


def parse_address(text: str) -> TcpAddress:
    """Read `HOST:PORT`, with brackets around an IPv6 address.

    Raises:
        ValueError: `text` has another form; the message shows the right one.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f'expected "[ADDRESS]:PORT" for IPv6, got {text!r}')
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'expected "HOST:PORT" such as "127.0.0.1:10809", got {text!r}')
    return TcpAddress(host, int(port))


def read_nbd(root: Table, directory: Path) -> NbdConfig:
    """Read `[nbd]` and `[[export]]`; paths are relative to `directory`.

    Raises:
        ConfigError: a key or value in them is not as expected.
    """
    table = root.table("nbd")
    if table.has("psk"):
        table.fail("psk", PSK_REFUSAL)
    unix, tcp = table.flag("unix", True), _tcp(table)
    if not unix and tcp is None:
        table.fail("unix", "nothing would be served; set unix = true or give tcp an address")
    tls, unix_tls = _policy(table, "tls"), _policy(table, "unix_tls")
    if tls is not Tls.OFF and tcp is None:
        table.fail("tls", "is for TCP, and tcp has no address; unix_tls is for the Unix socket")
    if unix_tls is not Tls.OFF and not unix:
        table.fail("unix_tls", "is for the Unix socket, which is off")
    config = NbdConfig(
        unix=unix,
        unix_mode=_unix_mode(table),
        unix_tls=unix_tls,
        tcp=tcp,
        tls=tls,
        files=_files(table, directory, used={tls, unix_tls} != {Tls.OFF}),
        limits=_limits(table),
        rules=_rules(root),
    )
    table.finish()
    _check_rules(root, config)
    return config


def _tcp(table: Table) -> TcpAddress | None:
    address = table.text("tcp", "-")
    if not table.has("tcp"):
        return None
    try:
        return parse_address(address)
    except ValueError as error:
        table.fail("tcp", str(error))


def _policy(table: Table, key: str) -> Tls:
    return Tls(table.choice(key, Tls.OFF.value, _POLICIES))


def _unix_mode(table: Table) -> int:
    text = table.text("unix_mode", f"{UNIX_MODE:04o}")
    if re.fullmatch(r"0?6[0-7]{2}", text) is None:
        table.fail("unix_mode", f'expected "0600", "0660" or "0666", got {text!r}')
    return int(text, 8)


def _files(table: Table, directory: Path, *, used: bool) -> TlsFiles | None:
    certificate, key, client_ca = [_path(table, name, directory) for name in _FILES]
    if not used:
        for name in _FILES:
            if table.has(name):
                table.fail(name, 'has no effect while TLS is off; set tls = "require"')
        return None
    if certificate is None:
        table.fail("certificate", "is missing; TLS needs the server's certificate, a PEM file")
    if key is None:
        table.fail("key", "is missing; TLS needs the key of the certificate, a PEM file")
    return TlsFiles(certificate, key, client_ca)


def _path(table: Table, key: str, directory: Path) -> Path | None:
    text = table.text(key, "-")
    return directory / Path(text).expanduser() if table.has(key) else None


def _limits(nbd: Table) -> Limits:
    table, default = nbd.table("limits"), Limits()
    size = table.size
    limits = Limits(
        connections_max=nbd.whole(
            "connections", default.connections_max, low=1, high=CONNECTIONS_MAX
        ),
        requests_in_flight_max=table.whole(
            "requests", default.requests_in_flight_max, low=1, high=1 << 16
        ),
        bytes_in_flight_max=size("bytes", low=PAYLOAD_BYTES_MAX, high=16 * GIB)
        or default.bytes_in_flight_max,
        memory_bytes_max=size("memory", low=2 * PAYLOAD_BYTES_MAX, high=TIB)
        or default.memory_bytes_max,
        payload_bytes_max=size(
            "request_size", low=PAYLOAD_BYTES_LEAST, high=PAYLOAD_BYTES_MAX, grain=4 * KIB
        )
        or default.payload_bytes_max,
        option_bytes_max=size("option_size", low=8 * KIB, high=MIB) or default.option_bytes_max,
        options_max=table.whole("options", default.options_max, low=16, high=1 << 20),
        handshake_s=table.seconds("handshake_s", default.handshake_s, low=0.1, high=3600),
        patience_s=table.seconds("patience_s", default.patience_s, low=0.1, high=3600),
        grace_s=table.seconds("grace_s", default.grace_s, low=0, high=60),
    )
    table.finish()
    return limits


def _rules(root: Table) -> tuple[AccessRule, ...]:
    rules = []
    for table in root.tables("export"):
        patterns = table.listed("name", str)
        if patterns is None:
            table.fail("name", 'is missing; expected names of volumes, such as "web*"')
        for pattern in patterns:
            if _PATTERN.fullmatch(pattern) is None:
                table.fail("name", f'no volume is called so: {pattern!r}; "web*" would match some')
        certificates, uids = table.listed("certificates", str), table.listed("uids", int)
        for uid in uids or ():
            if not 0 <= uid <= _UID_MAX:
                table.fail("uids", f"not the number of a user: {uid}")
        rules.append(
            AccessRule(
                exports=_with_snapshots(patterns),
                read_only=table.flag("read_only", False),
                certificates=None if certificates is None else frozenset(certificates),
                uids=None if uids is None else frozenset(uids),
            )
        )
        table.finish()
    return tuple(rules)


def _with_snapshots(patterns: Sequence[str]) -> tuple[str, ...]:
    """Add the snapshots of the volumes: they hold the same data, so the same rule covers them."""
    snapshots = [f"{pattern}@*" for pattern in patterns if "@" not in pattern]
    return (*patterns, *snapshots)


def _check_rules(root: Table, config: NbdConfig) -> None:
    """Refuse rules whose `certificates` or `uids` could never match a client."""
    checked = config.files is not None and config.files.client_ca is not None
    for index, rule in enumerate(config.rules):
        if rule.certificates is not None and not checked:
            root.fail(f"export[{index}].certificates", "clients show none without nbd.client_ca")
        if rule.uids is not None and not config.unix:
            root.fail(f"export[{index}].uids", "users are known on the Unix socket, which is off")
