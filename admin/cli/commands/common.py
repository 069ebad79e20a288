"""Shared by the commands: the --home, --json and --yes options, and running against a daemon."""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from admin.api.client import Client
from admin.errors import NotConfirmedError, UsageError
from admin.home import find_home
from admin.reports.base import Report
from admin.reports.output import ask, show
from admin.sizes import SizeError, parse_volume_size

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="Directory of the daemon [CENOTE_HOME; else /var/lib/cenote for root, "
        "~/.local/share/cenote for others].",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write the result, or the error, as JSON.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DisconnectOption = Annotated[
    bool, typer.Option("--disconnect", help="Disconnect its clients first.")
]
SizeOption = Annotated[
    str, typer.Option("--size", metavar="SIZE", help="Such as 20G or 1.5T; K, M, G... are 1024s.")
]
VolumeArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
SnapshotArgument = Annotated[str, typer.Argument(metavar="VOL@SNAP", show_default=False)]

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class Common:
    """Options that may precede the noun, follow the command, or both; those of the command win."""

    home: Path | None = None
    as_json: bool = False

    def merged(self, home: Path | None, as_json: bool) -> "Common":
        """These options, overridden by those of the command."""
        return Common(home or self.home, as_json or self.as_json)


def common_options(context: typer.Context, home: Path | None, as_json: bool) -> Common:
    """The options of this command and of the words before it."""
    outer = context.obj
    return (outer if isinstance(outer, Common) else Common()).merged(home, as_json)


def new_noun(help_text: str) -> typer.Typer:
    """A group of commands; plain help text, because rich help takes longer than the command."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)


def examples(*lines: str) -> str:
    """An epilog of commands to copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def ask_daemon(
    context: typer.Context,
    home: Path | None,
    as_json: bool,
    act: Callable[[Client, Options], Report],
    options: Options,
) -> None:
    """Carry out a command with the daemon and write its report."""
    common = common_options(context, home, as_json)
    where = find_home(common.home)
    with Client(where, command=serve_command(common)) as client:
        report = act(client, options)
    show(report, as_json=common.as_json)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def serve_command(common: Common) -> str:
    """The command that starts the daemon of these options."""
    return f"{program()} serve{home_words(common)}"


def program() -> str:
    """The word that calls this program: `cenote`, or the path of this call where the shell would
    not find `cenote`, as in the environment that `make run` makes."""
    called = sys.argv[0]
    is_ours = Path(called).name == "cenote"
    return shlex.quote(called) if is_ours and shutil.which("cenote") is None else "cenote"


def home_words(common: Common) -> str:
    """` --home DIR` when it was given, for commands shown to be copied."""
    return f" --home {shlex.quote(str(common.home))}" if common.home else ""


def confirm(question: str, *, yes: bool) -> None:
    """Go on only when the user agrees.

    Raises:
        NotConfirmedError: the answer was no, or there is no terminal and no --yes.
    """
    if yes:
        return
    answer = ask(question)
    if answer is None:
        raise NotConfirmedError("nothing was changed: no terminal to ask on; repeat with --yes")
    if not answer:
        raise NotConfirmedError("nothing was changed")


def size_argument(text: str, option: str = "--size") -> int:
    """The size of a volume, or of a part of it, from an option, in bytes.

    Raises:
        UsageError: a volume cannot have that size.
    """
    try:
        return parse_volume_size(text)
    except SizeError as error:
        raise UsageError(f"{option}: {error}") from error


def uri_of(client: Client, export: str) -> str | None:
    """The URI of `export` for clients on this machine, or None."""
    return client.daemon().uri(export)
