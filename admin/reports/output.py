"""Writes to the terminal: reports as text or JSON, errors, questions and progress.

Results go to stdout; errors, questions and progress to stderr. Text from outside (names, paths)
is never taken as markup, and control characters in it are written as escapes.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from admin.errors import describe
from admin.names import printable
from admin.reports.base import Report

Progress = Callable[[str, int, int], None]
"""Called with the name of the work under way, the amount that is done, and the total amount."""


class NoReaderError(Exception):
    """Stdout is a pipe without a reader. No OSError: the parser would exit with 1 for that."""


def show(report: Report, *, as_json: bool, on_stderr: bool = False) -> None:
    """Write a report to stdout, or to stderr where stdout carries a stream.

    Raises:
        NoReaderError: it is a pipe without a reader.
    """
    try:
        with redirect_stdout(sys.stderr if on_stderr else sys.stdout):
            if as_json:
                sys.stdout.write(json.dumps(report.json_value(), indent=2) + "\n")
            else:
                sys.stdout.writelines(report.text())
            sys.stdout.flush()
    except BrokenPipeError as error:
        raise NoReaderError from error


def show_event(report: Report, *, as_json: bool) -> None:
    """Write a report of a program that goes on running: flushed at once, and JSON on one line.

    Does nothing when stdout is a pipe without a reader.
    """
    try:
        if as_json:
            sys.stdout.write(json.dumps(report.json_value()) + "\n")
        else:
            sys.stdout.writelines(report.text())
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()  # the daemon goes on without a reader of its greeting


def drop_stdout() -> None:
    """Discard further output: the pipe has no reader, and Python would complain on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_error(error: BaseException, *, as_json: bool) -> None:
    """Write an error to stderr: `cenote: message`, or its JSON object on one line."""
    if as_json:
        sys.stderr.write(json.dumps(describe(error)) + "\n")
    else:
        sys.stderr.write(f"cenote: {printable(str(error) or type(error).__name__)}\n")


def ask(question: str) -> bool | None:
    """Ask on the terminal for yes or no; None when there is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def progress(*, show: bool = True, in_bytes: bool = False) -> Iterator[Progress]:
    """Show progress on stderr while the context lasts; nothing when stderr is no terminal.

    Args:
        in_bytes: the amounts are bytes; show them with units and with their speed.
    """
    if not (show and sys.stderr.isatty()):
        yield lambda what, done, total: None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns: list[rich_progress.ProgressColumn] = [*rich_progress.Progress.get_default_columns()]
    if in_bytes:
        columns += [
            rich_progress.DownloadColumn(binary_units=True),
            rich_progress.TransferSpeedColumn(),
        ]
    console = Console(stderr=True, highlight=False)
    with rich_progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            bars.update(task, description=printable(what), completed=done, total=total or None)

        yield update
