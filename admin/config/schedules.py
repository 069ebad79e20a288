"""Schedules of automatic snapshots in the configuration:

    [[schedule]]
    name = "hourly"                     snapshots carry it; a new name makes a new schedule
    volumes = ["web*", "shop"]          names and patterns, as in [[export]]
    labels = { tier = "gold" }          volumes with all these labels; with `volumes`, among them
    every = "1h"                        m, h, d, w; at round times, UTC
    keep = { hourly = 24, daily = 7 }   last, hourly, daily, weekly, monthly, yearly

The snapshots of all volumes of a schedule are made at one moment. The rule `hourly = 24` keeps the
newest snapshot of each of the last 24 hours that have one; the others count days, weeks...
"""

from admin.config.tables import Table
from admin.periods import PeriodError, parse_period
from storage.catalogue.schedule import Schedule, check_schedule
from storage.errors import InvalidArgumentError


def read_schedules(root: Table) -> dict[str, Schedule]:
    """The schedules by name.

    Raises:
        ConfigError: a key or value in one is not acceptable.
    """
    schedules: dict[str, Schedule] = {}
    for table in root.tables("schedule"):
        name = table.text("name")
        if name in schedules:
            table.fail("name", f"two schedules are called {name!r}")
        try:
            every_s = parse_period(table.text("every"))
        except PeriodError as error:
            table.fail("every", str(error))
        schedule = Schedule(
            every_s,
            keep=table.mapping("keep", int),
            volumes=table.listed("volumes", str) or (),
            labels=table.mapping("labels", str),
        )
        table.finish()
        try:
            schedules[name] = check_schedule(name, schedule)
        except InvalidArgumentError as error:
            table.fail("name", f"schedule {name!r}: {error}")
    return schedules
