"""Values that describe the daemon: its clients, exports and schedules.

The values that describe the pool are in `storage.info`.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One NBD connection, with counts of its requests and bytes so far.

    No two connections of one run of the daemon have the same `number`. `uid` is known on the Unix
    socket; `names` come from the client's certificate. `export` is None until the client has
    chosen one. `size_bytes` is the size that the client was told. `since` is UTC, ISO 8601, for
    display only.
    """

    number: int
    address: str
    uid: int | None
    names: list[str]
    tls: bool
    export: str | None
    size_bytes: int
    read_only: bool
    since: str
    requests: int
    read_bytes: int
    written_bytes: int
    errors: int

    @property
    def identity(self) -> str:
        """The client's address, with its user and the names in its certificate where known."""
        user = "" if self.uid is None else f" uid={self.uid}"
        names = f" certificate={','.join(self.names)}" if self.names else ""
        return f"{self.address}{user}{names}"


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """Counts of one export since the daemon started, over all its clients, also former ones.

    `clients` counts the present connections.
    """

    name: str
    clients: int
    requests: int
    read_bytes: int
    written_bytes: int
    errors: int


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """The running daemon; `endpoints` are NBD URIs with `{name}` for the name of an export."""

    version: str
    process: int
    home: str
    endpoints: list[str]

    def uri(self, export: str) -> str | None:
        """The URI of `export` for clients on this machine, or None when there is no endpoint."""
        return self.endpoints[0].format(name=quote(export)) if self.endpoints else None


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule of automatic snapshots and the state of its runs; times are UTC, ISO 8601.

    `matches` are the volumes that it covers now; without any, `next_run` is None. `last_run` is
    the time of its newest snapshot that still exists. `last_error` is None after a run without
    an error.
    """

    name: str
    source: str
    """`command`, or `configuration`: then only the file can change it."""
    volumes: list[str]
    labels: dict[str, str]
    every_s: int
    keep: dict[str, int]
    matches: list[str]
    snapshots: int
    last_run: str | None
    next_run: str | None
    last_error: str | None


def unix_endpoint(socket: Path, *, tls: bool = False) -> str:
    """The endpoint of an NBD server on a Unix socket."""
    scheme = "nbds+unix" if tls else "nbd+unix"
    return f"{scheme}:///{{name}}?socket=" + _literal(quote(str(socket)))


def tcp_endpoint(host: str, port: int, *, tls: bool = False) -> str:
    """The endpoint of an NBD server on a TCP port."""
    scheme = "nbds" if tls else "nbd"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{{name}}"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
