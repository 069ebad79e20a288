"""Names of volumes and snapshots: their syntax, and how text from outside is printed safely."""

import re
from typing import NamedTuple

from storage.errors import InvalidArgumentError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,126}")


class SnapshotName(NamedTuple):
    """The name of a snapshot with that of its volume, written `volume@snapshot`."""

    volume: str
    snapshot: str

    def __str__(self) -> str:
        return f"{self.volume}@{self.snapshot}"


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if a volume or snapshot can have it.

    Args:
        what: the kind of name, for the message.

    Raises:
        InvalidArgumentError: the name is empty, too long, or has a character that is not allowed.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"not a {what}: {name!r}; use letters, digits and . _ + -, "
            "starting with a letter or digit, at most 127"
        )
    return name


def parse_snapshot(text: str) -> SnapshotName:
    """Read `VOLUME@SNAPSHOT`.

    Raises:
        InvalidArgumentError: there is no '@', or `check_name` refuses one of the names.
    """
    volume, at, snapshot = text.partition("@")
    if not at:
        raise InvalidArgumentError(f"not a snapshot: {text!r}; write VOLUME@SNAPSHOT")
    return SnapshotName(check_name(volume, "volume name"), check_name(snapshot, "snapshot name"))


def printable(text: str) -> str:
    """`text` with characters that could control a terminal written as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
