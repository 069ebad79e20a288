"""`cenote snapshot`: make, list, delete and go back to snapshots."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.client import Client
from admin.commands.common import (
    HomeOption,
    JsonOption,
    SnapshotArgument,
    YesOption,
    ask_daemon,
    confirm,
    examples,
    new_noun,
    uri_of,
)
from admin.names import SnapshotName, check_name, parse_snapshot
from admin.reports import DeletedReport, SnapshotReport, SnapshotsReport, VolumeReport

app = new_noun("Snapshots: volumes as they once were, VOL@SNAP.")


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """A snapshot; `yes` skips the question where there is one."""

    name: SnapshotName
    yes: bool = False


@dataclass(frozen=True, slots=True)
class ListOptions:
    """All snapshots, or those of one volume."""

    volume: str | None


def create(client: Client, options: SnapshotOptions) -> SnapshotReport:
    """Create a snapshot."""
    return SnapshotReport("created snapshot", client.create_snapshot(options.name))


def list_all(client: Client, options: ListOptions) -> SnapshotsReport:
    """List snapshots."""
    return SnapshotsReport(client.snapshots(options.volume))


def delete(client: Client, options: SnapshotOptions) -> DeletedReport:
    """Delete a snapshot after asking."""
    confirm(f"Delete snapshot {options.name}?", yes=options.yes)
    client.delete_snapshot(options.name)
    return DeletedReport("snapshot", str(options.name))


def rollback(client: Client, options: SnapshotOptions) -> VolumeReport:
    """Go back to a snapshot after asking."""
    name = options.name
    question = f"Discard everything written to {name.volume} since {name}?"
    confirm(question, yes=options.yes)
    volume = client.rollback(name)
    return VolumeReport("rolled back volume", volume, uri_of(client, volume.name))


@app.command("create", epilog=examples("cenote snapshot create root@before-upgrade"))
def create_command(
    context: typer.Context,
    name: SnapshotArgument,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a volume as it is now. Costs one record, however large the volume."""
    ask_daemon(context, home, as_json, create, SnapshotOptions(parse_snapshot(name)))


@app.command("list", epilog=examples("cenote snapshot list", "cenote snapshot list root --json"))
def list_command(
    context: typer.Context,
    volume: Annotated[str | None, typer.Argument(metavar="VOL", show_default=False)] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List snapshots, of all volumes or of one."""
    options = ListOptions(None if volume is None else check_name(volume, "volume name"))
    ask_daemon(context, home, as_json, list_all, options)


@app.command("delete", epilog=examples("cenote snapshot delete root@before-upgrade"))
def delete_command(
    context: typer.Context,
    name: SnapshotArgument,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a snapshot; the volume keeps its content. Without a terminal, --yes is needed."""
    ask_daemon(context, home, as_json, delete, SnapshotOptions(parse_snapshot(name), yes))


@app.command("rollback", epilog=examples("cenote snapshot rollback root@before-upgrade"))
def rollback_command(
    context: typer.Context,
    name: SnapshotArgument,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume what it was. Without a terminal, --yes is needed."""
    ask_daemon(context, home, as_json, rollback, SnapshotOptions(parse_snapshot(name), yes))
