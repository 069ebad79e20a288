"""Reports as text, for people."""

import functools
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from admin.fullness import warning_of
from admin.names import printable
from admin.periods import period
from admin.reports.base import (
    CheckedReport,
    ClientsReport,
    CopiedReport,
    DeletedReport,
    DisconnectedReport,
    ExitCodesReport,
    ExportAbout,
    ExportsReport,
    InfoReport,
    PoolReport,
    ReadyReport,
    Report,
    ResizedReport,
    ScheduleReport,
    SchedulesReport,
    SnapshotReport,
    SnapshotsReport,
    TreeReport,
    VersionReport,
    VolumeReport,
    VolumesReport,
)
from admin.reports.transfers import ReceivedReport, SentReport, TokenReport
from admin.sizes import human

if TYPE_CHECKING:
    from admin.api.values import ClientInfo, ExportInfo
    from admin.reports.transfers import TransferCounts
    from storage.info import PoolInfo, VolumeInfo


@functools.singledispatch
def write_text(report: Report) -> None:
    """Write a report to stdout, as JSON where there is no text for its kind."""
    sys.stdout.write(json.dumps(report.json_value(), indent=2) + "\n")


def line(text: str = "") -> None:
    """Write one line, control characters as escapes."""
    sys.stdout.write(printable(text) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Write a table; into a pipe it is never cut to the width of some terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(Text(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    wide = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, width=wide, highlight=False).print(table)


@write_text.register
def _(report: VersionReport) -> None:
    line(f"cenote {report.version} (Python {report.python})")


@write_text.register
def _(report: PoolReport) -> None:
    pool = report.pool
    line(f"pool    {pool.uuid}, {pool.health}, {_copies(pool)}")
    line(f"room    {_room(pool)}")
    if warning := warning_of(pool):
        line(f"warning {warning}")
    line(f"holds   {_count(pool.volumes, 'volume')}, {_count(pool.snapshots, 'snapshot')}")
    for endpoint in report.daemon.endpoints:
        line(f"served  {endpoint.format(name='NAME')}")
    line()
    table(
        ("member", "host", "state", "size", "free", "errors", "repaired"),
        [
            (
                member.name or str(member.uuid),
                member.host,
                member.state.value,
                human(member.size_bytes),
                human(member.slots_free * pool.segment_bytes),
                str(member.read_errors + member.checksum_errors),
                str(member.repaired),
            )
            for member in pool.members
        ],
        right=("size", "free", "errors", "repaired"),
    )


@write_text.register
def _(report: ClientsReport) -> None:
    if not report.clients:
        return line("no clients")
    _clients(report.clients)


@write_text.register
def _(report: DisconnectedReport) -> None:
    line(f"disconnected {_count(len(report.disconnected), 'client')}")
    for client in report.disconnected:
        line(f"  {client.number}  {client.who}, {client.export or 'no export yet'}")


@write_text.register
def _(report: ExportsReport) -> None:
    if not report.exports:
        return line("no export had a client yet")
    table(
        ("export", "clients", *_COUNTS),
        [(export.name, str(export.clients), *_counts(export)) for export in report.exports],
        right=("clients", *_COUNTS),
    )


@write_text.register
def _(report: VolumeReport) -> None:
    line(f"{report.done} {_volume(report.volume, report.uri)}")


@write_text.register
def _(report: ResizedReport) -> None:
    line(f"resized volume {_volume(report.volume, report.uri)}")
    if report.stale:
        line("NBD cannot tell clients of it: they see the old size until they connect anew:")
    for client in report.stale:
        line(f"  {client.number}  {client.who}, sees {human(client.size_bytes)}")


@write_text.register
def _(report: VolumesReport) -> None:
    if not report.volumes:
        return line("no volumes; make one: cenote volume create NAME --size 20G")
    table(
        ("volume", "size", "origin", "snapshots", "clients", "created"),
        [
            (
                volume.name,
                human(volume.size_bytes),
                _origin(volume),
                str(volume.snapshots),
                str(volume.clients),
                volume.created,
            )
            for volume in report.volumes
        ],
        right=("size", "snapshots", "clients"),
    )
    for volume in report.volumes:
        if (came := volume.receiving) is not None:
            percent = 100 * came.position_bytes // volume.size_bytes
            line(f"{volume.name} is not whole: {came.snapshot} is being received, {percent} %")


def _origin(volume: "VolumeInfo") -> str:
    how = volume.flattening
    if how is None:
        return volume.origin or "-"
    share = 100 * how.pages_done // how.pages if how.pages else 0
    return f"{volume.origin or '-'}, flattening, {share} %" + (how.error is not None) * ", waits"


@write_text.register
def _(report: SnapshotReport) -> None:
    line(f"{report.done} {report.snapshot.volume}@{report.snapshot.name}")


@write_text.register
def _(report: SnapshotsReport) -> None:
    if not report.snapshots:
        return line("no snapshots")
    table(
        ("snapshot", "size", "clones", "created"),
        [
            (f"{s.volume}@{s.name}", human(s.size_bytes), str(s.clones), s.created)
            for s in report.snapshots
        ],
        right=("size", "clones"),
    )


@write_text.register
def _(report: TreeReport) -> None:
    from admin.reports.volumes import write_tree  # rich takes a while to import

    if not report.nodes:
        return line("no volumes; make one: cenote volume create NAME --size 20G")
    write_tree(report.nodes)


@write_text.register
def _(report: ScheduleReport) -> None:
    one = report.schedule
    about = ", ".join(one.matches) or "no volume that there is"
    then = f", next at {one.next_run}" if one.next_run else ""
    line(f"{report.done} {one.name}, every {period(one.every_s)} of {about}{then}")


@write_text.register
def _(report: SchedulesReport) -> None:
    if not report.schedules:
        return line("no schedules; set one: cenote schedule set VOL --every 1h --keep hourly=24")
    table(
        ("schedule", "every", "keep", "volumes", "snapshots", "last run", "next run", "error"),
        [
            (
                one.name,
                period(one.every_s),
                ", ".join(f"{rule}={count}" for rule, count in one.keep.items()),
                ", ".join(one.matches) or "-",
                str(one.snapshots),
                one.last_run or "-",
                one.next_run or "-",
                one.last_error or "-",
            )
            for one in report.schedules
        ],
        right=("snapshots",),
    )


@write_text.register
def _(report: DeletedReport) -> None:
    line(f"deleted {report.kind} {report.deleted}")


@write_text.register
def _(report: CheckedReport) -> None:
    check = report.check
    line(f"pool {check.pool}")
    line(
        f"checked {_count(check.commits, 'commit')}, {_count(check.pages, 'page')}, "
        f"{_count(check.extents, 'extent')}, {human(check.bytes_verified)}"
    )
    for damage in check.damage:
        hope = "a good copy is left" if damage.repairable else "no good copy is left"
        line(f"damage: {damage.what}: {damage.where}; {hope}")
    line("clean" if not check.damage else f"damaged in {_count(len(check.damage), 'place')}")


@write_text.register
def _(report: InfoReport) -> None:
    for number, export in enumerate(report.exports):
        if number:
            line()
        _about(export)
    if not report.exports:
        line("the server has no exports")


@write_text.register
def _(report: CopiedReport) -> None:
    rate = f"{human(int(report.size_bytes / report.took_s))}/s" if report.took_s else "at once"
    line(f"copied {human(report.size_bytes)} in {report.took_s:.2f} s, {rate}; it is durable")
    line(
        f"  {human(report.copied_bytes)} data, {human(report.zeroed_bytes)} made zeroes, "
        f"{human(report.skipped_bytes)} were zeroes already"
    )
    if report.mismatches:
        offsets = ", ".join(map(str, report.mismatches))
        line(f"the copy differs from what was read, near these offsets: {offsets}")
        line("check the destination and the way to it, then copy again")
    elif report.verified:
        line("verified: the copy reads back as what was copied")


@write_text.register
def _(report: SentReport) -> None:
    since = f" since {report.since}" if report.since else ""
    there = f", as {report.received}" if report.received else ""
    line(f"sent {report.sent}{since}{there}: {_transfer(report.counts)}")


@write_text.register
def _(report: ReceivedReport) -> None:
    line(f"received {report.received}: {_transfer(report.counts)}; it is durable")


@write_text.register
def _(report: TokenReport) -> None:
    line(report.receiving.token)


@write_text.register
def _(report: ReadyReport) -> None:
    verb = "created and serving" if report.created else "serving"
    line(f"cenote: {verb} pool {report.pool.uuid} from {report.daemon.home}")
    line(f"  room     {_room(report.pool)}, {_copies(report.pool)}")
    line(f"  volumes  {', '.join(report.volumes) or 'none yet'}")
    for endpoint in report.daemon.endpoints:
        line(f"  exports  {endpoint.format(name='NAME')}")
    line()
    line("Next, in another terminal:")
    for command in report.commands:
        line(f"  {command}")


@write_text.register
def _(report: ExitCodesReport) -> None:
    for code, (name, meaning) in report.codes.items():
        line(f"{code:3}  {name or '-':22} {meaning}")


def _transfer(counts: "TransferCounts") -> str:
    rest = f" from {human(counts.start_bytes)} on" if counts.start_bytes else ""
    zeroes = f", {human(counts.zero_bytes)} zeroes" if counts.zero_bytes else ""
    return (
        f"{human(counts.data_bytes)} data{zeroes}{rest}, in {human(counts.stream_bytes)} and "
        f"{counts.took_s:.2f} s"
    )


def _about(export: ExportAbout) -> None:
    line(f"export    {export.name or '(default)'}")
    if export.problem:
        return line(f"  problem   {export.problem}")
    write = "read-only" if export.read_only else "read and write"
    line(f"  size      {human(export.size_bytes)} ({export.size_bytes}), {write}")
    if export.description:
        line(f"  about     {export.description}")
    line(f"  flags     {', '.join(export.flags) or 'none'}")
    line(
        f"  blocks    {human(export.block_bytes)} at least, {human(export.preferred_bytes)} "
        f"preferred, {human(export.payload_bytes_max)} at most"
    )
    line(f"  contexts  {', '.join(export.contexts) or 'none'}")
    line(f"  protocol  {export.mode}, {'TLS' if export.tls else 'no TLS'}")
    if (found := export.map) is not None:
        line(
            f"  map       {human(found.data_bytes)} data, {human(found.zero_bytes)} zeroes, "
            f"{human(found.hole_bytes)} holes, {_count(found.extents, 'extent')}"
        )


_COUNTS = ("requests", "read", "written", "errors")


def _clients(clients: "Sequence[ClientInfo]") -> None:
    table(
        ("id", "client", "user", "certificate", "tls", "export", *_COUNTS, "since"),
        [
            (
                str(client.number),
                client.address,
                "-" if client.uid is None else str(client.uid),
                ", ".join(client.names) or "-",
                "yes" if client.tls else "no",
                _export(client),
                *_counts(client),
                client.since,
            )
            for client in clients
        ],
        right=("id", *_COUNTS),
    )


def _export(client: "ClientInfo") -> str:
    if client.export is None:
        return "-"
    return f"{client.export} (read-only)" if client.read_only else client.export


def _counts(one: "ClientInfo | ExportInfo") -> tuple[str, ...]:
    return str(one.requests), human(one.read_bytes), human(one.written_bytes), str(one.errors)


def _volume(volume: "VolumeInfo", uri: str | None) -> str:
    where = f", {uri}" if uri else ""
    return f"{volume.name}, {human(volume.size_bytes)}{where}"


def _room(pool: "PoolInfo") -> str:
    return f"{human(pool.free_bytes)} free of {human(pool.size_bytes)}"


def _copies(pool: "PoolInfo") -> str:
    members = _count(len(pool.members), "member")
    return f"{pool.copies} {'copy' if pool.copies == 1 else 'copies'} on {members}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
