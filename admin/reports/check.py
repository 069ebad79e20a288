"""The report about an offline check."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.wire import encode
from admin.reports.base import Report, counted, line
from admin.sizes import human
from storage.info import CheckReport


@dataclass(frozen=True, slots=True)
class CheckedReport(Report):
    """The result of an offline check."""

    check: CheckReport

    @property
    def exit_code(self) -> int:
        """0 when clean, 1 when there is damage."""
        return 1 if self.check.damage else 0

    def text(self) -> Iterator[str]:
        """The amount of data that was checked, a line for each damaged place, and the verdict."""
        check = self.check
        yield line(f"pool {check.pool}")
        yield line(
            f"checked {counted(check.commits, 'commit')}, {counted(check.pages, 'page')}, "
            f"{counted(check.extents, 'extent')}, {human(check.bytes_verified)}"
        )
        for damage in check.damage:
            hope = "a good copy is left" if damage.repairable else "no good copy is left"
            yield line(f"damage: {damage.what}: {damage.where}; {hope}")
        places = counted(len(check.damage), "place")
        yield line("clean" if not check.damage else f"damaged in {places}")

    def json_value(self) -> Any:
        """The check's fields and `clean`."""
        return {**encode(self.check), "clean": not self.check.damage}
