"""Reports about members of the pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.wire import encode
from admin.reports.base import Report, line, table
from admin.sizes import human
from storage.info import MemberInfo, PoolInfo


@dataclass(frozen=True, slots=True)
class MemberReport(Report):
    """One member; `done` is `added` or `grown`."""

    done: str
    member: MemberInfo

    def text(self) -> Iterator[str]:
        """One line."""
        member = self.member
        yield line(
            f"{self.done} member {member.name}, {human(member.size_bytes)}, host {member.host}, "
            f"{member.uuid}"
        )

    def json_value(self) -> Any:
        """The member's fields."""
        return encode(self.member)


@dataclass(frozen=True, slots=True)
class MembersReport(Report):
    """All members of the pool."""

    pool: PoolInfo

    def text(self) -> Iterator[str]:
        """A table."""
        pool = self.pool
        yield table(
            ("member", "host", "state", "size", "free", "errors", "repaired", "uuid"),
            [
                (
                    member.name or "-",
                    member.host,
                    member.state.value,
                    human(member.size_bytes),
                    human(member.slots_free * pool.segment_bytes),
                    str(member.read_errors + member.checksum_errors),
                    str(member.repaired),
                    str(member.uuid),
                )
                for member in pool.members
            ],
            right=("size", "free", "errors", "repaired"),
        )

    def json_value(self) -> Any:
        """The list."""
        return encode(self.pool.members)
