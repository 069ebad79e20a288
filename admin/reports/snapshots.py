"""Reports about snapshots."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.wire import encode
from admin.reports.base import Report, line, table
from admin.sizes import human
from storage.info import SnapshotInfo


@dataclass(frozen=True, slots=True)
class SnapshotReport(Report):
    """One snapshot; `done` precedes it, as in `created snapshot`."""

    done: str
    snapshot: SnapshotInfo

    def text(self) -> Iterator[str]:
        """One line."""
        yield line(f"{self.done} {self.snapshot.volume}@{self.snapshot.name}")

    def json_value(self) -> Any:
        """The snapshot's fields."""
        return encode(self.snapshot)


@dataclass(frozen=True, slots=True)
class SnapshotsReport(Report):
    """Several snapshots."""

    snapshots: list[SnapshotInfo]

    def text(self) -> Iterator[str]:
        """A table."""
        if not self.snapshots:
            yield line("no snapshots")
            return
        yield table(
            ("snapshot", "size", "clones", "created"),
            [
                (f"{s.volume}@{s.name}", human(s.size_bytes), str(s.clones), s.created)
                for s in self.snapshots
            ],
            right=("size", "clones"),
        )

    def json_value(self) -> Any:
        """The list."""
        return encode(self.snapshots)
