"""What the daemon tells about itself, besides what the pool does (`storage.info`)."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One NBD connection and what it did so far; `export` is None until it chose one.

    `number` is its own while the daemon runs. `uid` is known on the Unix socket, `names` come
    from a certificate. `size_bytes` is the size that the client was told. `since` is UTC,
    ISO 8601, for display only.
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
    def who(self) -> str:
        """The client in words."""
        user = "" if self.uid is None else f" uid={self.uid}"
        names = f" certificate={','.join(self.names)}" if self.names else ""
        return f"{self.address}{user}{names}"


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What clients did with one export since the daemon started, those that left included."""

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
        """Where clients of this machine find `export`."""
        return self.endpoints[0].format(name=quote(export)) if self.endpoints else None


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule of automatic snapshots, and what became of it; times are UTC, ISO 8601.

    `matches` are the volumes that it is about now; without any there is no `next_run`. `last_run`
    is when the newest snapshot that is left was made. `last_error` is set until it goes well again.
    """

    name: str
    source: str
    """`command`, or `configuration`, where alone it can be changed."""
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
