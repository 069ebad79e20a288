"""Access rules: which client may use which export, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase


class Access(Enum):
    """Access of a client to an export."""

    NONE = "none"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Peer:
    """The client of a connection: `address` as text, the user id behind a Unix socket, and the
    names in its certificate, if that was verified. `secure`: the connection has TLS."""

    address: str
    uid: int | None = None
    names: tuple[str, ...] = ()
    secure: bool = False


@dataclass(frozen=True, slots=True)
class AccessRule:
    """Access to the exports that match a pattern of `exports` (`*`, `?` and `[a-z]` as in a shell).

    Without `certificates` and `uids` every client has this access; with either, only clients named
    in one of them: user ids count on Unix sockets, names of certificates where clients show one.
    """

    exports: tuple[str, ...]
    read_only: bool = False
    certificates: frozenset[str] | None = None
    uids: frozenset[int] | None = None

    def matches(self, export: str) -> bool:
        """Whether the rule applies to this export."""
        return any(fnmatchcase(export, pattern) for pattern in self.exports)

    def access(self, peer: Peer) -> Access:
        """Return the access that the rule gives to a client."""
        restricted = self.certificates is not None or self.uids is not None
        named = (self.uids is not None and peer.uid in self.uids) or (
            self.certificates is not None and not self.certificates.isdisjoint(peer.names)
        )
        if restricted and not named:
            return Access.NONE
        return Access.READ if self.read_only else Access.WRITE


def decide(rules: Sequence[AccessRule], export: str, peer: Peer) -> Access:
    """Return the access by the first rule that applies to the export; WRITE if none does."""
    for rule in rules:
        if rule.matches(export):
            return rule.access(peer)
    return Access.WRITE
