"""`cenote send` and `cenote receive`: snapshots from pool to pool."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import (
    HomeOption,
    JsonOption,
    SnapshotArgument,
    common_options,
    examples,
    serve_command,
)
from admin.errors import UsageError
from admin.home import Home, find_home
from admin.names import check_name, parse_snapshot
from admin.reports.output import progress, show
from admin.reports.transfers import TokenReport

if TYPE_CHECKING:
    from admin.cli.streams import Destination

SEND_EPILOG = examples(
    "cenote send root@monday > monday.stream",
    "cenote send root@tuesday --since root@monday | ssh backup cenote receive root",
    "cenote send root@tuesday --resume $(ssh backup cenote receive root --token) | "
    "ssh backup cenote receive root",
    "cenote send root@monday --to /mnt/other/home --as copy",
)
RECEIVE_EPILOG = examples(
    "cenote receive root < monday.stream",
    "cenote receive copy@first < monday.stream",
    "cenote receive root --token",
    "cenote volume delete root+receiving",
)

DiscardOption = Annotated[
    bool,
    typer.Option("--discard", help="Let go of what was written to VOL since its last snapshot."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, and no result.")
]


def send_command(
    context: typer.Context,
    name: SnapshotArgument,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="VOL@SNAP",
            help="Send only what differs from this snapshot, which the receiver must have.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="TOKEN",
            help="Go on where receiving was interrupted; see cenote receive --token.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="HOME",
            help="Send to the daemon of this home (or control socket), not to stdout.",
            show_default=False,
        ),
    ] = None,
    as_name: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="VOL[@SNAP]",
            help="With --to: its name there [the same].",
            show_default=False,
        ),
    ] = None,
    discard: DiscardOption = False,
    quiet: QuietOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a snapshot, or its difference to another, as a stream on stdout.

    The stream is as long as what differs. It is checksummed against accidents; send it over a
    channel that nobody can tamper with, such as ssh. Both snapshots stay until it is sent.
    The base may be any snapshot of the pool, as of the volume that this one was cloned from.
    With --to, what was interrupted goes on by itself. The result is on stderr without --to.
    """
    common = common_options(context, home, as_json)
    what, base = parse_snapshot(name), None if since is None else parse_snapshot(since)
    if to is None:
        _check_stdout(as_name is not None or discard)
    # This module takes longer to import than other commands take to run.
    from admin.cli.streams import send, send_to

    with (
        Client(find_home(common.home), command=serve_command(common)) as client,
        progress(show=not (quiet or common.as_json), in_bytes=True) as report_progress,
    ):
        if to is None:
            report = send(client, what, base, resume, sys.stdout.buffer, report_progress)
        else:
            destination = _destination(as_name or what.volume, discard=discard)
            with Client(_home_at(to)) as there:
                report = send_to(client, what, base, resume, there, destination, report_progress)
    if not quiet or (common.as_json and to is not None):
        show(report, as_json=common.as_json, on_stderr=to is None)


def _check_stdout(is_for_another: bool) -> None:
    if is_for_another:
        raise UsageError("--as and --discard are for --to; else give them to cenote receive")
    if sys.stdout.isatty():
        raise UsageError("a stream is not for a terminal: redirect stdout, or use --to")


def receive_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="VOL[@SNAP]", show_default=False)],
    discard: DiscardOption = False,
    token: Annotated[
        bool,
        typer.Option("--token", help="Say how far an interrupted receive got, for send --resume."),
    ] = False,
    quiet: QuietOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Receive a snapshot of a volume from a stream on stdin.

    A whole snapshot makes a new volume. A difference goes to the volume that has the snapshot it
    builds on, or makes a new one, a clone. The snapshot appears when all of it is there and
    durable; the volume then is what the snapshot is. Until then what arrived is listed as
    VOL+receiving, which is not served, and from which an interrupted receive goes on.
    """
    common = common_options(context, home, as_json)
    destination = _destination(name, discard=discard)
    # This module takes longer to import than other commands take to run.
    from admin.cli.streams import interrupted, receive

    with (
        Client(find_home(common.home), command=serve_command(common)) as client,
        progress(show=not (quiet or common.as_json), in_bytes=True) as report_progress,
    ):
        if token:
            show(TokenReport(interrupted(client, destination.volume)), as_json=common.as_json)
            return
        if sys.stdin.isatty():
            raise UsageError("a stream of cenote send is expected on stdin, not a terminal")
        report = receive(client, destination, sys.stdin.buffer, report_progress)
    if not quiet or common.as_json:
        show(report, as_json=common.as_json)


def _home_at(path: Path) -> Home:
    """The home that a path names, or the home of a control socket."""
    path = path.expanduser()
    return find_home(path.parent if path.is_socket() else path)


def _destination(name: str, *, discard: bool) -> "Destination":
    from admin.cli.streams import Destination

    if "@" in name:
        volume, snapshot = parse_snapshot(name)
        return Destination(volume, snapshot, discard)
    return Destination(check_name(name, "volume name"), None, discard)
