"""What server and client agreed on, and what the client then did."""

from collections.abc import Mapping
from dataclasses import dataclass

from nbd.constants import ExportFlag
from nbd.server.replies import Replies


@dataclass(slots=True)
class Counters:
    """What one client did so far."""

    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0

    def add(self, other: "Counters") -> None:
        """Count what another client did as well."""
        self.requests += other.requests
        self.read_bytes += other.read_bytes
        self.written_bytes += other.written_bytes
        self.errors += other.errors


@dataclass(frozen=True, slots=True)
class Terms:
    """The outcome of a negotiation. `flags` were advertised; `extended` says how requests look;
    `contexts` are what BLOCK_STATUS tells of, by number; `early` came behind the last option."""

    flags: ExportFlag
    replies: Replies
    extended: bool
    contexts: Mapping[int, str]
    early: bytes = b""
