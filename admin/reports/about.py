"""Reports about Cenote itself: its version and its exit statuses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.reports.base import Report, line


@dataclass(frozen=True, slots=True)
class VersionReport(Report):
    """The versions of Cenote and of Python."""

    version: str
    python: str

    def text(self) -> Iterator[str]:
        """One line."""
        yield line(f"cenote {self.version} (Python {self.python})")


@dataclass(frozen=True, slots=True)
class ExitCodesReport(Report):
    """Exit statuses, each with the name of its error class and its meaning."""

    codes: dict[int, tuple[str, str]]

    def text(self) -> Iterator[str]:
        """A line for each status."""
        for code, (name, meaning) in self.codes.items():
            yield line(f"{code:3}  {name or '-':22} {meaning}")

    def json_value(self) -> Any:
        """A list of code, error class and meaning."""
        return [
            {"exit_code": code, "error": name, "meaning": meaning}
            for code, (name, meaning) in self.codes.items()
        ]
