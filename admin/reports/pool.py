"""Reports about space and members as text."""

from admin.reports.base import (
    MemberReport,
    MembersReport,
    PoolSpaceReport,
    VolumeSpaceReport,
)
from admin.reports.text import line, table, write_text
from admin.sizes import human

__all__ = ["write_text"]


@write_text.register
def _(report: PoolSpaceReport) -> None:
    space = report.space
    since = f", {space.commits_since} commits since" if space.commits_since else ""
    line(f"as of commit {space.commit}{since}")
    saved = space.mapped_bytes - space.data_bytes
    rows = [
        ("unique", space.unique_bytes, ""),
        ("shared", space.shared_bytes, ""),
        ("deleted", space.deleted_bytes, ""),
        ("data", space.data_bytes, f"compressed from {human(space.mapped_bytes)}" if saved else ""),
        ("map", space.map_bytes, ""),
        ("dead", space.dead_bytes, ""),
        ("unwritten", space.unwritten_bytes, ""),
        ("newer", space.newer_bytes, ""),
        ("cooling", space.cooling_bytes, ""),
        ("free", space.free_bytes, _kept(space.reserve_bytes, space.promised_bytes)),
        ("total", space.total_bytes, ""),
    ]
    table(
        ("what", "bytes", ""),
        [("  " * (what in _PARTS) + what, human(size), note) for what, size, note in rows],
        right=("bytes",),
    )
    line()
    table(
        ("member", "host", "size", "used", "cooling", "free", "reserve", "superblocks"),
        [
            (
                member.name or str(member.uuid),
                member.host,
                human(member.size_bytes),
                human(member.used_bytes),
                human(member.cooling_bytes),
                human(member.free_bytes),
                human(member.reserve_bytes),
                human(member.overhead_bytes),
            )
            for member in space.members
        ],
        right=("size", "used", "cooling", "free", "reserve", "superblocks"),
    )


_PARTS = ("unique", "shared", "deleted")


def _kept(reserve_bytes: int, promised_bytes: int) -> str:
    promised = f", {human(promised_bytes)} promised" if promised_bytes else ""
    return f"{human(reserve_bytes)} in reserve{promised}"


@write_text.register
def _(report: VolumeSpaceReport) -> None:
    if not report.lines:
        return line("no volumes; make one: cenote volume create NAME --size 20G")
    line(f"as of commit {report.lines[0].commit}")
    columns = ("size", "mapped", "stored", "unique", "shared", "written", "own", "reserve", "cap")
    rows = []
    for one in report.lines:
        limits = report.limits.get(one.name, {})
        sizes = (
            one.size_bytes, one.mapped_bytes, one.stored_bytes, one.unique_bytes,
            one.shared_bytes, one.written_bytes, one.own_bytes,
        )  # fmt: skip
        kept = [limits.get("reserve_bytes"), limits.get("cap_bytes")]
        rows.append(
            (one.name, *map(human, sizes), *("-" if not size else human(size) for size in kept))
        )
    table(("volume", *columns), rows, right=columns)


@write_text.register
def _(report: MemberReport) -> None:
    member = report.member
    line(
        f"{report.done} member {member.name}, {human(member.size_bytes)}, host {member.host}, "
        f"{member.uuid}"
    )


@write_text.register
def _(report: MembersReport) -> None:
    pool = report.pool
    table(
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
