"""What the daemon tells about itself, besides what the pool does (`storage.info`)."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One NBD connection and what it did so far; `export` is None until it chose one.

    `since` is UTC, ISO 8601, for display only.
    """

    address: str
    export: str | None
    since: str
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


def unix_endpoint(socket: Path) -> str:
    """The endpoint of an NBD server on a Unix socket."""
    return "nbd+unix:///{name}?socket=" + _literal(quote(str(socket)))


def tcp_endpoint(host: str, port: int) -> str:
    """The endpoint of an NBD server on a TCP port."""
    return f"nbd://{f'[{host}]' if ':' in host else host}:{port}/{{name}}"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
