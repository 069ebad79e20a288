"""`cenote check`: verify a pool that no daemon has open, changing nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from admin.cli.commands.common import HomeOption, JsonOption, common_options, examples
from admin.errors import AlreadyRunningError
from admin.home import Home, find_home, holder
from admin.reports.check import CheckedReport
from admin.reports.output import progress, show

if TYPE_CHECKING:
    from admin.reports.output import Progress

EPILOG = examples("cenote check", "cenote check pool-configs/two-copies.toml --json") + (
    "\n\n\b\nExit status: 0 clean, 1 damage was found, others as usual."
)


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The pool to check: that of a configuration, else the one that the home served last."""

    home: Home
    config_file: Path | None


def check(options: CheckOptions, report_progress: "Progress") -> CheckedReport:
    """Verify everything on every member.

    Raises:
        AlreadyRunningError: a daemon serves the home.
        BusyError: a daemon of another home has the members.
    """
    process = holder(options.home)
    if process is not None and options.config_file is None:
        raise AlreadyRunningError(
            f"a daemon (process {process}) has the pool of {options.home.path} open; stop it first"
        )
    import trio

    from admin.daemon.devices import check_offline
    from admin.daemon.pool_record import choose_config

    config = choose_config(options.home, options.config_file)
    report = trio.run(
        check_offline, config, report_progress, restrict_keyboard_interrupt_to_checkpoints=True
    )
    return CheckedReport(report)


def check_command(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="Default: what the home served last.", show_default=False
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a pool while no daemon serves it: metadata, and the checksum of all data."""
    common = common_options(context, home, as_json)
    with progress() as report_progress:
        report = check(CheckOptions(find_home(common.home), config), report_progress)
    show(report, as_json=common.as_json)
    if report.exit_code:
        raise typer.Exit(report.exit_code)
