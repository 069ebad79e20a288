"""Commands that volumes and snapshots share: renaming, promoting, and setting properties."""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import (
    HomeOption,
    JsonOption,
    SnapshotArgument,
    VolumeArgument,
    ask_daemon,
    examples,
    size_argument,
    uri_of,
)
from admin.names import SnapshotName, check_name, parse_snapshot
from admin.reports.snapshots import SnapshotReport
from admin.reports.volumes import VolumeReport
from storage.errors import InvalidArgumentError

NewNameArgument = Annotated[str, typer.Argument(metavar="NEW", show_default=False)]
DescriptionOption = Annotated[
    str | None, typer.Option("--description", metavar="TEXT", help="What it is for.")
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="May be repeated; KEY= takes it away."),
]
ProtectOption = Annotated[
    bool | None,
    typer.Option("--protect/--unprotect", help="Refuse to delete it.", show_default=False),
]


IopsOption = Annotated[
    int | None, typer.Option("--iops", min=0, help="Requests per second.", show_default=False)
]
BandwidthOption = Annotated[
    str | None,
    typer.Option("--bandwidth", metavar="SIZE", help="Bytes per second, such as 50M."),
]
ReserveOption = Annotated[
    str | None,
    typer.Option("--reserve", metavar="SIZE", help="Keep room for it, such as 10G."),
]
CapOption = Annotated[
    str | None,
    typer.Option("--cap", metavar="SIZE", help="Let it hold no more, such as 50G."),
]
BurstOption = Annotated[
    float | None,
    typer.Option("--burst", min=0, help="Seconds of idle time that may be made up for: 1."),
]


@dataclass(frozen=True, slots=True)
class RenameOptions:
    """A volume or snapshot, and its new name."""

    name: SnapshotName | str
    new_name: str


@dataclass(frozen=True, slots=True)
class NoteOptions:
    """A volume or snapshot, and the properties to change."""

    name: SnapshotName | str
    notes: dict[str, object] = field(default_factory=dict)


def rename_volume(client: Client, options: RenameOptions) -> VolumeReport:
    """Rename a volume."""
    volume = client.rename_volume(str(options.name), options.new_name)
    return VolumeReport("renamed volume to", volume, uri_of(client, volume.name))


def rename_snapshot(client: Client, options: RenameOptions) -> SnapshotReport:
    """Rename a snapshot."""
    assert isinstance(options.name, SnapshotName)
    return SnapshotReport(
        "renamed snapshot to", client.rename_snapshot(options.name, options.new_name)
    )


def promote(client: Client, name: str) -> VolumeReport:
    """Promote a clone."""
    volume = client.promote(name)
    return VolumeReport("promoted volume", volume, uri_of(client, volume.name))


def note_volume(client: Client, options: NoteOptions) -> VolumeReport:
    """Change properties of a volume."""
    client.note(str(options.name), options.notes)
    volume = client.volume(str(options.name))
    return VolumeReport("changed volume", volume, uri_of(client, volume.name))


def note_snapshot(client: Client, options: NoteOptions) -> SnapshotReport:
    """Change properties of a snapshot."""
    name = options.name
    assert isinstance(name, SnapshotName)
    client.note(str(name), options.notes)
    found = [one for one in client.snapshots(name.volume) if one.name == name.snapshot]
    return SnapshotReport("changed snapshot", found[0])


def add_to_volumes(app: typer.Typer) -> None:
    """Add the commands of `cenote volume`."""

    @app.command("rename", epilog=examples("cenote volume rename root old-root"))
    def rename_command(
        context: typer.Context,
        name: VolumeArgument,
        new_name: NewNameArgument,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Give a volume without clients another name; its snapshots go with it."""
        options = RenameOptions(
            check_name(name, "volume name"), check_name(new_name, "volume name")
        )
        ask_daemon(context, home, as_json, rename_volume, options)

    @app.command("promote", epilog=examples("cenote volume promote test"))
    def promote_command(
        context: typer.Context,
        name: VolumeArgument,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Give a clone the snapshots of its origin that it stands on: it then is the origin."""
        ask_daemon(context, home, as_json, promote, check_name(name, "volume name"))

    @app.command(
        "set",
        epilog=examples(
            'cenote volume set root --description "the golden image" --protect',
            "cenote volume set root --label team=web --label tier=",
            "cenote volume set root --iops 500 --bandwidth 50M --burst 10",
            "cenote volume set root --reserve 10G --cap 50G",
        ),
    )
    def set_command(
        context: typer.Context,
        name: VolumeArgument,
        description: DescriptionOption = None,
        label: LabelOption = None,
        protect: ProtectOption = None,
        iops: IopsOption = None,
        bandwidth: BandwidthOption = None,
        burst: BurstOption = None,
        reserve: ReserveOption = None,
        cap: CapOption = None,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Describe, label or protect a volume, limit what its clients may do, reserve or cap room.

        Limits count at once, for all clients of the volume together; 0 takes one away.

        Reservation and cap count what only the volume and its snapshots hold, before compression:
        the column own of cenote volume df. What is reserved and not held yet is kept free of
        other volumes. A write that would pass the cap fails with ENOSPC, also one over older
        data: that is given back by the next checkpoint, for which the volume then waits.
        """
        limits, space = _limits(iops, bandwidth, burst), _space(reserve, cap)
        notes = _notes(description, label, protect, limits, space)
        options = NoteOptions(check_name(name, "volume name"), notes)
        ask_daemon(context, home, as_json, note_volume, options)


def add_to_snapshots(app: typer.Typer) -> None:
    """Add the commands of `cenote snapshot`."""

    @app.command("rename", epilog=examples("cenote snapshot rename root@before clean"))
    def rename_command(
        context: typer.Context,
        name: SnapshotArgument,
        new_name: NewNameArgument,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Give a snapshot another name, NEW, of the same volume."""
        options = RenameOptions(parse_snapshot(name), check_name(new_name, "snapshot name"))
        ask_daemon(context, home, as_json, rename_snapshot, options)

    @app.command("set", epilog=examples("cenote snapshot set root@clean --protect"))
    def set_command(
        context: typer.Context,
        name: SnapshotArgument,
        description: DescriptionOption = None,
        label: LabelOption = None,
        protect: ProtectOption = None,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Describe, label or protect a snapshot."""
        options = NoteOptions(parse_snapshot(name), _notes(description, label, protect))
        ask_daemon(context, home, as_json, note_snapshot, options)


def _limits(iops: int | None, bandwidth: str | None, burst: float | None) -> dict[str, float]:
    limits: dict[str, float] = {}
    if iops is not None:
        limits["requests_per_s"] = iops
    if bandwidth is not None:
        limits["bytes_per_s"] = 0 if bandwidth == "0" else size_argument(bandwidth)
    if burst is not None:
        limits["burst_s"] = burst
    return limits


def _space(reserve: str | None, cap: str | None) -> dict[str, int]:
    given = {"reserve_bytes": reserve, "cap_bytes": cap}
    return {
        name: 0 if text == "0" else size_argument(text, f"--{name.partition('_')[0]}")
        for name, text in given.items()
        if text is not None
    }


def _notes(
    description: str | None,
    labels: list[str] | None,
    protect: bool | None,
    limits: dict[str, float] | None = None,
    space: dict[str, int] | None = None,
) -> dict[str, object]:
    notes: dict[str, object] = {}
    if description is not None:
        notes["description"] = description
    if labels:
        pairs = [label.partition("=") for label in labels]
        for key, equals, _ in pairs:
            if not equals:
                raise InvalidArgumentError(f"not a label: {key!r}; write KEY=VALUE")
        notes["labels"] = {key: value for key, _, value in pairs}
    if protect is not None:
        notes["protected"] = protect
    if limits:
        notes["limits"] = limits
    if space:
        notes["space"] = space
    if not notes:
        raise InvalidArgumentError("nothing to change: give --description, --label or --protect")
    return notes
