"""`cenote nbd`: look at exports of any NBD server, and copy from and to them. Needs no daemon."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from admin.cli.commands.common import (
    HomeOption,
    JsonOption,
    YesOption,
    common_options,
    confirm,
    examples,
    new_noun,
)
from admin.errors import UsageError
from admin.reports.output import progress, show
from admin.sizes import SizeError, compact, human, parse_size

if TYPE_CHECKING:
    from admin.cli.copying import CopyOptions

app = new_noun("Exports of any NBD server, by URI; no daemon is needed.")

REQUEST_BYTES_MIN, REQUEST_BYTES_MAX = 64 << 10, 32 << 20
"""A server may demand blocks of 64 KiB, and need not take more than 32 MiB."""

UriArgument = Annotated[
    str, typer.Argument(metavar="URI", help="nbd://HOST/NAME and so on.", show_default=False)
]


@app.command(
    "info",
    epilog=examples(
        "cenote nbd info nbd://localhost",
        "cenote nbd info 'nbd+unix:///root?socket=/var/lib/cenote/nbd.sock' --map",
        "cenote nbd info 'nbds://storage.example/web1?tls-certificates=/etc/pki/web' --json",
    ),
)
def info_command(
    context: typer.Context,
    uri: UriArgument,
    with_map: Annotated[
        bool, typer.Option("--map", help="Sum up what is data and what is holes.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a server says of an export, or of all its exports if the URI names none."""
    common = common_options(context, home, as_json)
    # trio and the NBD client take longer to import than other commands take to run.
    from admin.cli.inspect import inspect

    show(inspect(uri, with_map=with_map), as_json=common.as_json)


@app.command(
    "copy",
    epilog=examples(
        "cenote nbd copy debian.raw 'nbd+unix:///root?socket=/var/lib/cenote/nbd.sock'",
        "cenote nbd copy nbd://host/disk backup.raw --verify",
        "cenote nbd copy nbd://old/disk nbds://new/disk --connections 8",
        "cenote nbd copy /dev/vg/disk nbd://host/disk --json",
    ),
)
def copy_command(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="File, disk or NBD URI.", show_default=False)
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The same; a file is made.", show_default=False)
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the copy back and compare hashes.")
    ] = False,
    connections: Annotated[
        int,
        typer.Option(
            "--connections", min=1, max=64, help="To a server that can share, on each side."
        ),
    ] = 4,
    requests: Annotated[
        int, typer.Option("--requests", min=1, max=1024, help="In flight at once.")
    ] = 64,
    request_size: Annotated[
        str, typer.Option("--request-size", metavar="SIZE", help="A power of two, 64K to 32M.")
    ] = "256K",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress, and no result.")
    ] = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy all of a file, disk or export onto another, and make it durable.

    Holes stay holes. What is beyond the source stays as it is; a destination that is too small is
    refused before anything is written. A file or disk with content is overwritten only after
    asking, or with --yes; an export at once.

    Memory is bounded by thrice --requests times --request-size. Exit status: 1 if --verify finds
    the copy to differ.
    """
    common = common_options(context, home, as_json)
    from admin.cli.copying import CopyOptions, run_copy

    options = CopyOptions(
        source, destination, connections, requests, _request_size(request_size), verify
    )
    options = _checked(options)
    _ask_to_overwrite(options.destination, yes=yes)
    with progress(show=not (quiet or common.as_json), in_bytes=True) as report_progress:
        report = run_copy(options, report_progress)
    if not quiet or common.as_json or report.exit_code:
        show(report, as_json=common.as_json)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _request_size(text: str) -> int:
    try:
        size_bytes = parse_size(text)
    except SizeError as error:
        raise UsageError(f"--request-size: {error}") from error
    power = size_bytes & (size_bytes - 1) == 0
    if not power or not REQUEST_BYTES_MIN <= size_bytes <= REQUEST_BYTES_MAX:
        raise UsageError(
            f"--request-size: expected a power of two from {compact(REQUEST_BYTES_MIN)} to "
            f"{compact(REQUEST_BYTES_MAX)}, got {text}"
        )
    return size_bytes


def _checked(options: "CopyOptions") -> "CopyOptions":
    """The options with `~` expanded; refuses equal ends, and a directory that does not exist."""
    from admin.cli.copying import is_uri

    ends = [
        end if is_uri(end) else str(Path(end).expanduser())
        for end in (options.source, options.destination)
    ]
    paths = [Path(end) for end in ends if not is_uri(end)]
    same = ends[0] == ends[1] or (
        len(paths) == 2 and all(path.exists() for path in paths) and paths[0].samefile(paths[1])
    )
    if same:
        raise UsageError("source and destination are the same; nothing was written")
    if not is_uri(ends[1]) and not paths[-1].parent.is_dir():
        raise UsageError(f"no such directory: {paths[-1].parent}; make it first")
    return replace(options, source=ends[0], destination=ends[1])


def _ask_to_overwrite(destination: str, *, yes: bool) -> None:
    from admin.cli.copying import is_empty_file, is_uri

    path = Path(destination)
    if is_uri(destination) or not path.exists() or is_empty_file(path):
        return
    size = f", {human(path.stat().st_size)}" if path.is_file() else ""
    confirm(f"Overwrite {path}{size}?", yes=yes)
