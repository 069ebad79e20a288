"""Names of volumes and snapshots: what is allowed, and how any text is shown safely."""

import re
from typing import NamedTuple

from storage.errors import InvalidArgumentError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,126}")


class SnapshotName(NamedTuple):
    """A snapshot as it is written: `volume@snapshot`."""

    volume: str
    snapshot: str

    def __str__(self) -> str:
        return f"{self.volume}@{self.snapshot}"


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if a volume or snapshot can have it.

    Raises:
        InvalidArgumentError: it is empty, too long or has other characters.
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
        InvalidArgumentError: there is no '@', or one of the names is not a name.
    """
    volume, at, snapshot = text.partition("@")
    if not at:
        raise InvalidArgumentError(f"not a snapshot: {text!r}; write VOLUME@SNAPSHOT")
    return SnapshotName(check_name(volume, "volume name"), check_name(snapshot, "snapshot name"))


def printable(text: str) -> str:
    """`text` with everything that could steer a terminal written as an escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
