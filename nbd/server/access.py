"""Who may use which export, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase


class Access(Enum):
    """What a client may do with an export."""

    NONE = "none"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: `address` in words, the user id behind a Unix socket, and the
    names in a certificate that was verified."""

    address: str
    uid: int | None = None
    names: tuple[str, ...] = ()
    secure: bool = False


@dataclass(frozen=True, slots=True)
class AccessRule:
    """Who may use the exports that match one of some patterns (`*`, `?` and `[a-z]` as in a shell).

    Without `certificates` and `uids` everybody may; with either, only those who are named in
    one of them: user ids count on Unix sockets, names of certificates where clients show one.
    """

    exports: tuple[str, ...]
    read_only: bool = False
    certificates: frozenset[str] | None = None
    uids: frozenset[int] | None = None

    def matches(self, export: str) -> bool:
        """Whether the rule is about this export."""
        return any(fnmatchcase(export, pattern) for pattern in self.exports)

    def access(self, peer: Peer) -> Access:
        """Return what the rule allows."""
        restricted = self.certificates is not None or self.uids is not None
        named = (self.uids is not None and peer.uid in self.uids) or (
            self.certificates is not None and not self.certificates.isdisjoint(peer.names)
        )
        if restricted and not named:
            return Access.NONE
        return Access.READ if self.read_only else Access.WRITE


def decide(rules: Sequence[AccessRule], export: str, peer: Peer) -> Access:
    """Return what the first rule about the export allows; without any, everything."""
    for rule in rules:
        if rule.matches(export):
            return rule.access(peer)
    return Access.WRITE
