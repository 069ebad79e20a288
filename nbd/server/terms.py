"""Terms of a connection, settled by negotiation, and counters of its requests."""

from collections.abc import Mapping
from dataclasses import dataclass

from nbd.constants import ExportFlag
from nbd.server.replies import Replies


@dataclass(slots=True)
class Counters:
    """Totals of one client so far."""

    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0

    def add(self, other: "Counters") -> None:
        """Add the totals of another client."""
        self.requests += other.requests
        self.read_bytes += other.read_bytes
        self.written_bytes += other.written_bytes
        self.errors += other.errors


@dataclass(frozen=True, slots=True)
class Terms:
    """The outcome of a negotiation. `flags` were advertised; `extended`: requests have extended
    headers; `contexts`: names of metadata contexts, by number; `early`: bytes behind the last
    option."""

    flags: ExportFlag
    replies: Replies
    extended: bool
    contexts: Mapping[int, str]
    early: bytes = b""
