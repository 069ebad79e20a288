"""The one module that writes to the terminal: reports as text or JSON, errors, questions.

Results go to stdout; errors, questions and progress to stderr. Text from outside (names, paths)
is never taken as markup, and control characters in it are written as escapes.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from admin.errors import describe
from admin.names import printable
from admin.reports import (
    CheckedReport,
    ClientsReport,
    DeletedReport,
    ExitCodesReport,
    PoolReport,
    ReadyReport,
    Report,
    SnapshotReport,
    SnapshotsReport,
    VersionReport,
    VolumeReport,
    VolumesReport,
)
from admin.sizes import human

if TYPE_CHECKING:
    from storage.info import PoolInfo

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def show(report: Report, *, as_json: bool) -> None:
    """Write a report to stdout."""
    if as_json:
        _write_json(report.json_value())
    else:
        _write(report)


def show_event(report: Report, *, as_json: bool) -> None:
    """Write a report while the program goes on: JSON takes one line, text is flushed at once."""
    try:
        if as_json:
            sys.stdout.write(json.dumps(report.json_value()) + "\n")
        else:
            _write(report)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()  # the program is worth more than its greeting


def drop_stdout() -> None:
    """Let further output go nowhere: its reader is gone, and Python would complain on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_error(error: BaseException, *, as_json: bool) -> None:
    """Write an error to stderr: `cenote: message`, or its JSON object on one line."""
    if as_json:
        sys.stderr.write(json.dumps(describe(error)) + "\n")
    else:
        sys.stderr.write(f"cenote: {printable(str(error) or type(error).__name__)}\n")


def ask(question: str) -> bool | None:
    """Ask on the terminal; None when there is no terminal to ask on."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def progress() -> Iterator[Progress]:
    """Show progress on stderr while the context lasts; nothing when that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True, highlight=False), transient=True) as bars:
        task = bars.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            bars.update(task, description=printable(what), completed=done, total=total or None)

        yield update


def _write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _line(text: str = "") -> None:
    sys.stdout.write(printable(text) + "\n")


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> None:
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


@functools.singledispatch
def _write(report: Report) -> None:
    _write_json(report.json_value())


@_write.register
def _(report: VersionReport) -> None:
    _line(f"cenote {report.version} (Python {report.python})")


@_write.register
def _(report: PoolReport) -> None:
    pool = report.pool
    _line(f"pool    {pool.uuid}, {pool.health}, {_copies(pool)}")
    _line(f"room    {_room(pool)}")
    _line(f"holds   {_count(pool.volumes, 'volume')}, {_count(pool.snapshots, 'snapshot')}")
    for endpoint in report.daemon.endpoints:
        _line(f"served  {endpoint.format(name='NAME')}")
    _line()
    _table(
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


@_write.register
def _(report: ClientsReport) -> None:
    if not report.clients:
        return _line("no clients")
    _table(
        ("client", "export", "requests", "read", "written", "errors", "since"),
        [
            (
                client.address,
                client.export or "-",
                str(client.requests),
                human(client.read_bytes),
                human(client.written_bytes),
                str(client.errors),
                client.since,
            )
            for client in report.clients
        ],
        right=("requests", "read", "written", "errors"),
    )


@_write.register
def _(report: VolumeReport) -> None:
    where = f", {report.uri}" if report.uri else ""
    _line(f"{report.done} {report.volume.name}, {human(report.volume.size_bytes)}{where}")


@_write.register
def _(report: VolumesReport) -> None:
    if not report.volumes:
        return _line("no volumes; make one: cenote volume create NAME --size 20G")
    _table(
        ("volume", "size", "origin", "snapshots", "clients", "created"),
        [
            (
                volume.name,
                human(volume.size_bytes),
                volume.origin or "-",
                str(volume.snapshots),
                str(volume.clients),
                volume.created,
            )
            for volume in report.volumes
        ],
        right=("size", "snapshots", "clients"),
    )


@_write.register
def _(report: SnapshotReport) -> None:
    _line(f"{report.done} {report.snapshot.volume}@{report.snapshot.name}")


@_write.register
def _(report: SnapshotsReport) -> None:
    if not report.snapshots:
        return _line("no snapshots")
    _table(
        ("snapshot", "size", "clones", "created"),
        [
            (f"{s.volume}@{s.name}", human(s.size_bytes), str(s.clones), s.created)
            for s in report.snapshots
        ],
        right=("size", "clones"),
    )


@_write.register
def _(report: DeletedReport) -> None:
    _line(f"deleted {report.kind} {report.deleted}")


@_write.register
def _(report: CheckedReport) -> None:
    check = report.check
    _line(f"pool {check.pool}")
    _line(
        f"checked {_count(check.commits, 'commit')}, {_count(check.pages, 'page')}, "
        f"{_count(check.extents, 'extent')}, {human(check.bytes_verified)}"
    )
    for damage in check.damage:
        hope = "a good copy is left" if damage.repairable else "no good copy is left"
        _line(f"damage: {damage.what}: {damage.where}; {hope}")
    _line("clean" if not check.damage else f"damaged in {_count(len(check.damage), 'place')}")


@_write.register
def _(report: ReadyReport) -> None:
    verb = "created and serving" if report.created else "serving"
    _line(f"cenote: {verb} pool {report.pool.uuid} from {report.daemon.home}")
    _line(f"  room     {_room(report.pool)}, {_copies(report.pool)}")
    _line(f"  volumes  {', '.join(report.volumes) or 'none yet'}")
    for endpoint in report.daemon.endpoints:
        _line(f"  exports  {endpoint.format(name='NAME')}")
    _line()
    _line("Next, in another terminal:")
    for command in report.commands:
        _line(f"  {command}")


@_write.register
def _(report: ExitCodesReport) -> None:
    for code, (name, meaning) in report.codes.items():
        _line(f"{code:3}  {name or '-':22} {meaning}")


def _room(pool: "PoolInfo") -> str:
    return f"{human(pool.free_bytes)} free of {human(pool.size_bytes)}"


def _copies(pool: "PoolInfo") -> str:
    members = _count(len(pool.members), "member")
    return f"{pool.copies} {'copy' if pool.copies == 1 else 'copies'} on {members}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
