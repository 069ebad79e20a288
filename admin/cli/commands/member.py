"""`cenote member`: the files and disks of the pool."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from admin.api.client import Client
from admin.cli.commands.common import (
    HomeOption,
    JsonOption,
    YesOption,
    ask_daemon,
    confirm,
    examples,
    new_noun,
)
from admin.errors import UsageError
from admin.reports.members import MemberReport, MembersReport
from admin.sizes import SizeError, parse_size

app = new_noun("Members: the files and disks that the pool is made of.")

FileSizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="SIZE", help="Such as 100G, for a file.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class AddOptions:
    """A file or disk to add; `force` gives up its content, `yes` skips the question."""

    path: str
    size_bytes: int | None
    host: str | None
    force: bool
    yes: bool


@dataclass(frozen=True, slots=True)
class GrowOptions:
    """A member by path or UUID, and how large its file is to be."""

    member: str
    size_bytes: int | None


def add(client: Client, options: AddOptions) -> MemberReport:
    """Add a member."""
    if options.force:
        confirm(f"Give up whatever {options.path} holds?", yes=options.yes)
    member = client.add_member(
        options.path, size_bytes=options.size_bytes, host=options.host, force=options.force
    )
    return MemberReport("added", member)


def list_all(client: Client, _: None) -> MembersReport:
    """List the members."""
    return MembersReport(client.pool())


def grow(client: Client, options: GrowOptions) -> MemberReport:
    """Use all of a larger member."""
    return MemberReport("grown", client.grow_member(options.member, options.size_bytes))


@app.command("list", epilog=examples("cenote member list", "cenote member list --json"))
def list_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """List members, with their UUIDs and what went wrong with them."""
    ask_daemon(context, home, as_json, list_all, None)


@app.command(
    "add",
    epilog=examples(
        "cenote member add /disks/b/member.img --size 500G",
        "cenote member add /dev/disk/by-id/nvme-two --host shelf-2",
        "cenote member add /dev/sdc --force --yes",
    ),
)
def add_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", show_default=False)],
    size: FileSizeOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="LABEL",
            show_default=False,
            help="Copies avoid sharing one; `local` unless given.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Give up what it holds.")] = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a file or disk a member of the pool while it is served.

    A file that does not exist is made, sparse. The daemon remembers the member in its home, in
    pool/pool.json, and opens it at each start beside those of the configuration; it may also
    be named there. Members of other pools are refused, and so is data, unless --force is given.
    """
    options = AddOptions(_absolute(path), _size(size), host, force, yes)
    ask_daemon(context, home, as_json, add, options)


@app.command(
    "grow",
    epilog=examples(
        "cenote member grow /disks/b/member.img --size 1T",
        "lvextend -L +100G vg/cenote && cenote member grow /dev/vg/cenote",
    ),
)
def grow_command(
    context: typer.Context,
    member: Annotated[str, typer.Argument(metavar="MEMBER", show_default=False)],
    size: FileSizeOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Use all of a member, by path or UUID, whose disk or file has become larger.

    With --size, its file is made so large first. Members do not shrink.
    """
    ask_daemon(context, home, as_json, grow, GrowOptions(_member(member), _size(size)))


def _member(name: str) -> str:
    try:
        return str(UUID(name))
    except ValueError:
        return _absolute(Path(name))


def _absolute(path: Path) -> str:
    return str(path.expanduser().absolute())


def _size(text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except SizeError as error:
        raise UsageError(f"--size: {error}") from error
