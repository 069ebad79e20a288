"""`cenote clone`: a volume that starts as a snapshot."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.client import Client
from admin.commands.common import HomeOption, JsonOption, SnapshotArgument, ask_daemon, uri_of
from admin.names import SnapshotName, check_name, parse_snapshot
from admin.reports import VolumeReport


@dataclass(frozen=True, slots=True)
class CloneOptions:
    """The snapshot to start from and the name of the new volume."""

    source: SnapshotName
    name: str


def clone(client: Client, options: CloneOptions) -> VolumeReport:
    """Create a clone."""
    volume = client.clone(options.source, options.name)
    return VolumeReport("created volume", volume, uri_of(client, volume.name))


def clone_command(
    context: typer.Context,
    source: SnapshotArgument,
    name: Annotated[str, typer.Argument(metavar="NEW", show_default=False)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume NEW that starts as VOL@SNAP. Takes room only for what is written to it."""
    options = CloneOptions(parse_snapshot(source), check_name(name, "volume name"))
    ask_daemon(context, home, as_json, clone, options)
