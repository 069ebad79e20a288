"""What the daemon tells about itself, besides what the pool does (`storage.info`)."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from admin.config import TcpAddress


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One NBD connection; `export` is empty while it has not chosen one."""

    address: str
    export: str
    connected_s: float


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


def tcp_endpoint(address: TcpAddress) -> str:
    """The endpoint of an NBD server on a TCP port."""
    return f"nbd://{_literal(str(address))}/{{name}}"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
