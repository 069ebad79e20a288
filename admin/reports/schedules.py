"""Reports about schedules of automatic snapshots."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.values import ScheduleInfo
from admin.api.wire import encode
from admin.periods import period
from admin.reports.base import Report, line, table


@dataclass(frozen=True, slots=True)
class ScheduleReport(Report):
    """One schedule; `done` precedes it, as in `set schedule`."""

    done: str
    schedule: ScheduleInfo

    def text(self) -> Iterator[str]:
        """One line."""
        one = self.schedule
        about = ", ".join(one.matches) or "no volume that there is"
        then = f", next at {one.next_run}" if one.next_run else ""
        yield line(f"{self.done} {one.name}, every {period(one.every_s)} of {about}{then}")

    def json_value(self) -> Any:
        """The schedule's fields."""
        return encode(self.schedule)


@dataclass(frozen=True, slots=True)
class SchedulesReport(Report):
    """All schedules."""

    schedules: list[ScheduleInfo]

    def text(self) -> Iterator[str]:
        """A table."""
        if not self.schedules:
            yield line("no schedules; set one: cenote schedule set VOL --every 1h --keep hourly=24")
            return
        yield table(
            ("schedule", "every", "keep", "volumes", "snapshots", "last run", "next run", "error"),
            [
                (
                    one.name,
                    period(one.every_s),
                    ", ".join(f"{rule}={count}" for rule, count in one.keep.items()),
                    ", ".join(one.matches) or "-",
                    str(one.snapshots),
                    one.last_run or "-",
                    one.next_run or "-",
                    one.last_error or "-",
                )
                for one in self.schedules
            ],
            right=("snapshots",),
        )

    def json_value(self) -> Any:
        """The list."""
        return encode(self.schedules)
