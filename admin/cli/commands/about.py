"""`cenote version` and `cenote help`, which need no daemon."""

import platform
from typing import Annotated

import typer

from admin import __version__
from admin.cli.commands.common import HomeOption, JsonOption, common_options
from admin.cli.exit_codes import exit_codes
from admin.errors import UsageError
from admin.reports.about import ExitCodesReport, VersionReport
from admin.reports.output import show

_TOPICS = ("exit-codes",)


def version_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Show the version."""
    common = common_options(context, home, as_json)
    show(VersionReport(__version__, platform.python_version()), as_json=common.as_json)


def help_command(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="exit-codes")] = "exit-codes",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a topic: exit-codes."""
    common = common_options(context, home, as_json)
    if topic not in _TOPICS:
        raise UsageError(f"no such topic: {topic!r}; known: {', '.join(_TOPICS)}")
    show(ExitCodesReport(exit_codes()), as_json=common.as_json)
