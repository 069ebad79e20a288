"""The base of all reports, and the lines and tables that their texts are made of.

A command returns a report: plain values, which `admin.reports.output` writes as text or as JSON.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from admin.api.wire import encode
from admin.names import printable


@dataclass(frozen=True, slots=True)
class Report(ABC):
    """The result of a command."""

    @property
    def exit_code(self) -> int:
        """The exit status of the command."""
        return 0

    @abstractmethod
    def text(self) -> Iterator[str]:
        """Yield the report for people: pieces of whole lines, made by `line` and `table`."""

    def json_value(self) -> Any:
        """The value that `--json` prints; by default the fields of the report."""
        return encode(self)


def line(text: str = "") -> str:
    """One line with its end; control characters become escapes."""
    return printable(text) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """The lines of a table, which fits the terminal; into a pipe it is never cut.

    Args:
        right: the columns that are aligned to the right.
    """
    from rich.table import Table  # rich takes a while to import
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(Text(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return rendered(table)


def rendered(drawing: object) -> str:
    """The text that `rich` writes to stdout for one of its objects, in colors on a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as capture:
        console.print(drawing)
    return capture.get()


def counted(number: int, noun: str) -> str:
    """A number of things in words: `1 page`, `2 pages`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
