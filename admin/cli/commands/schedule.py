"""`cenote schedule`: automatic snapshots, and how long they are kept."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import HomeOption, JsonOption, ask_daemon, examples, new_noun
from admin.errors import UsageError
from admin.names import check_name
from admin.periods import PeriodError, parse_period
from admin.reports.schedules import ScheduleReport, SchedulesReport
from admin.reports.volumes import DeletedReport

app = new_noun("Schedules: automatic snapshots, and how long they are kept.")

ScheduleArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@dataclass(frozen=True, slots=True)
class SetOptions:
    """A schedule to set."""

    name: str
    every_s: int
    keep: dict[str, int]
    volumes: list[str]
    labels: dict[str, str]


def set_one(client: Client, options: SetOptions) -> ScheduleReport:
    """Set a schedule."""
    schedule = client.set_schedule(
        options.name, every_s=options.every_s, keep=options.keep, volumes=options.volumes,
        labels=options.labels,
    )  # fmt: skip
    return ScheduleReport("set schedule", schedule)


def list_all(client: Client, _: None) -> SchedulesReport:
    """List the schedules."""
    return SchedulesReport(client.schedules())


def remove(client: Client, name: str) -> DeletedReport:
    """Remove a schedule."""
    client.remove_schedule(name)
    return DeletedReport("schedule", name)


def run(client: Client, name: str) -> ScheduleReport:
    """Run a schedule now."""
    return ScheduleReport("ran schedule", client.run_schedule(name))


@app.command(
    "set",
    epilog=examples(
        "cenote schedule set root --every 1h --keep hourly=24,daily=7",
        "cenote schedule set databases --volume 'db-*' --every 15m --keep last=8,hourly=24",
        "cenote schedule set gold --label tier=gold --every 1d --keep daily=7,monthly=12",
    ),
)
def set_command(
    context: typer.Context,
    name: ScheduleArgument,
    every: Annotated[
        str,
        typer.Option(
            "--every", metavar="TIME", help="Such as 15m, 1h, 1d or 1w; at round times, UTC.",
        ),
    ],
    keep: Annotated[
        str,
        typer.Option(
            "--keep", metavar="RULE=N,...",
            help="The newest of each of the last N: hourly, daily, weekly, monthly, yearly; "
            "or simply the last N: last.",
        ),
    ],
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", metavar="VOL", help="A volume or a pattern; more may be given."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Volumes that carry it, and the others."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Make snapshots of volumes again and again, and delete them when they are old.

    Without --volume and --label it is about the volume NAME. Several volumes are kept as they are
    at one moment. Snapshots that are protected, in use, cloned or renamed are never deleted.
    """
    labels = _pairs("--label", label or [])
    volumes = volume or ([] if labels else [name])
    try:
        every_s = parse_period(every)
    except PeriodError as error:
        raise UsageError(f"--every: {error}") from error
    options = SetOptions(check_name(name, "schedule name"), every_s, _rules(keep), volumes, labels)
    ask_daemon(context, home, as_json, set_one, options)


@app.command("list", epilog=examples("cenote schedule list", "cenote schedule list --json"))
def list_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """List schedules: when they ran, when they run next, and what went wrong."""
    ask_daemon(context, home, as_json, list_all, None)


@app.command("remove", epilog=examples("cenote schedule remove root"))
def remove_command(
    context: typer.Context,
    name: ScheduleArgument,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a schedule. The snapshots it made stay."""
    ask_daemon(context, home, as_json, remove, check_name(name, "schedule name"))


@app.command("run", epilog=examples("cenote schedule run root"))
def run_command(
    context: typer.Context,
    name: ScheduleArgument,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a snapshot now, due or not, and delete what is no longer kept."""
    ask_daemon(context, home, as_json, run, check_name(name, "schedule name"))


def _pairs(option: str, words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{option}: not a pair: {word!r}; write KEY=VALUE")
        pairs[key] = value
    return pairs


def _rules(text: str) -> dict[str, int]:
    rules = {}
    for key, value in _pairs("--keep", text.split(",")).items():
        if not value.isascii() or not value.isdigit():
            raise UsageError(f"--keep: not a number: {value!r}; write rules such as daily=7")
        rules[key.strip()] = int(value)
    return rules
