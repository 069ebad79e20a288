"""The root of the command line: runs a command, and turns its outcome into an exit status."""

import sys
import traceback
from typing import Final

import typer

from admin.cli.commands import (
    about,
    check,
    client,
    clone,
    member,
    nbd,
    pool,
    schedule,
    scrub,
    serve,
    snapshot,
    transfer,
    volume,
)
from admin.cli.commands.common import Common, HomeOption, JsonOption, examples
from admin.errors import AdminError, InternalError, NotConfirmedError, UsageError, exit_code_of
from admin.reports.output import NoReaderError, drop_stdout, show_error
from blockdev.errors import DeviceError

_EPILOG = """\b
Exit status: 0 done, 1 check found damage or a copy differs, 2 usage, 3 no
daemon is running, 4 bad configuration, 5 a daemon is running already, 10 and
up an error of the pool. All of them: cenote help exit-codes

""" + examples(
    "cenote serve",
    "cenote volume create root --size 20G",
    "cenote snapshot create root@clean",
    "cenote clone root@clean test",
)

_BROKEN_PIPE_CODE: Final = 128 + 13  # the status that a shell gives a program ended by SIGPIPE

# The base of the parser's errors; typer exports only this subclass of it.
_ParserError: Final = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="cenote",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
)
app.add_typer(pool.app, name="pool")
app.add_typer(volume.app, name="volume")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(member.app, name="member")
app.add_typer(schedule.app, name="schedule")
app.add_typer(scrub.app, name="scrub")
app.add_typer(client.app, name="client")
app.add_typer(nbd.app, name="nbd")
app.command("serve", short_help="Run the daemon.", epilog=serve.EPILOG)(serve.serve_command)
app.command(
    "clone",
    short_help="Make a volume from a snapshot.",
    epilog=examples("cenote clone root@clean test"),
)(clone.clone_command)
app.command("send", short_help="Send a snapshot as a stream.", epilog=transfer.SEND_EPILOG)(
    transfer.send_command
)
app.command(
    "receive", short_help="Receive a snapshot from a stream.", epilog=transfer.RECEIVE_EPILOG
)(transfer.receive_command)
app.command("check", short_help="Verify a pool that no daemon serves.", epilog=check.EPILOG)(
    check.check_command
)
app.command("version")(about.version_command)
app.command("help", epilog=examples("cenote help exit-codes"))(about.help_command)


@app.callback()
def root(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Thin, copy-on-write volumes for virtual machines, from pooled files and disks."""
    context.obj = Common(home, as_json)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in words  # also when the parser refuses the words
    try:
        result = app(words, prog_name="cenote", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except BaseException as error:
        return _failed(error, as_json=as_json)


def _failed(error: BaseException, *, as_json: bool) -> int:
    if isinstance(error, BrokenPipeError | NoReaderError):
        drop_stdout()
        return _BROKEN_PIPE_CODE
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        error = NotConfirmedError("interrupted")
    elif isinstance(error, _ParserError):
        error = UsageError(_parser_message(error))
    elif isinstance(error, SystemExit):
        raise error
    elif not isinstance(error, AdminError | DeviceError):
        traceback.print_exception(error)
        error = InternalError(f"internal error: {error!r}")
    show_error(error, as_json=as_json)
    return exit_code_of(error)


def _parser_message(error: BaseException) -> str:
    text = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "cenote"
    return f"{text.rstrip('.')}; see {path} --help"


if __name__ == "__main__":
    sys.exit(main())
