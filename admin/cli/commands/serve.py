"""`cenote serve`: run the daemon in the foreground, for service managers and terminals."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from admin.cli.commands.common import (
    Common,
    HomeOption,
    JsonOption,
    common_options,
    examples,
    home_words,
    program,
)
from admin.home import Home, find_home
from admin.reports.output import show_event
from admin.reports.pool import ReadyReport

EPILOG = examples(
    "cenote serve",
    "cenote serve pool-configs/two-copies.toml",
    "cenote serve --home /srv/cenote /etc/cenote.toml",
)


class LogLevel(StrEnum):
    """The lowest level of entries in the log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The pool to serve, and the form of the log and of the greeting."""

    home: Home
    common: Common
    config_file: Path | None
    without: tuple[str, ...]
    format_paths: tuple[Path, ...]
    log_level: str
    log_json: bool


def serve(options: ServeOptions) -> None:
    """Serve until a signal; raises the error that stopped the daemon otherwise."""
    # The daemon's libraries take longer to import than other commands take to run.
    from admin.daemon.logs import set_up_logging
    from admin.daemon.nbd_service import load_tls
    from admin.daemon.pool_record import choose_config
    from admin.daemon.run import run_daemon
    from admin.daemon.service import Orders
    from admin.home import hold

    set_up_logging(options.log_level, as_json=options.log_json)
    config = choose_config(options.home, options.config_file)
    tls = load_tls(config.nbd, config.file)

    def ready(report: ReadyReport) -> None:
        show_event(report, as_json=options.common.as_json)

    with hold(options.home):
        run_daemon(
            Orders(
                home=options.home,
                config=config,
                without=options.without,
                format_paths=tuple(path.expanduser().absolute() for path in options.format_paths),
                program=program(),
                home_words=home_words(options.common),
                ready=ready,
                tls=tls,
            )
        )


def serve_command(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="TOML file; see pool-configs/.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="MEMBER",
            help="Open by force without this member (path or UUID); what only it holds is lost.",
        ),
    ] = None,
    format_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--format",
            metavar="PATH",
            help="Take this disk or file for a new pool, destroying what it holds.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option("--log-level", help="How much the log on stderr tells.")
    ] = LogLevel.INFO,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write the log as JSON.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open the pool, or create it on the first start, and serve its volumes over NBD.

    Without CONFIG, the home's last one is used again; if it never had one, the pool is one sparse
    file, HOME/pool/member.img, of 64 GiB or the size of the file system if that is less.

    SIGTERM and Ctrl-C stop cleanly; a second
    one skips the last checkpoint, which loses nothing that was flushed.
    """
    common = common_options(context, home, as_json)
    serve(
        ServeOptions(
            home=find_home(common.home),
            common=common,
            config_file=config,
            without=tuple(without or ()),
            format_paths=tuple(format_path or ()),
            log_level=log_level.value,
            log_json=log_json,
        )
    )
