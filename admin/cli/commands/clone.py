"""`cenote clone`: a volume that starts as a snapshot, or as another volume."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import HomeOption, JsonOption, ask_daemon, uri_of
from admin.names import SnapshotName, check_name, parse_snapshot
from admin.reports.volumes import VolumeReport


@dataclass(frozen=True, slots=True)
class CloneOptions:
    """The snapshot or volume to start from and the name of the new volume."""

    source: SnapshotName | str
    name: str


def clone(client: Client, options: CloneOptions) -> VolumeReport:
    """Create a clone."""
    volume = client.clone(options.source, options.name)
    return VolumeReport("created volume", volume, uri_of(client, volume.name))


def clone_command(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="VOL[@SNAP]", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NEW", show_default=False)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume NEW that starts as VOL@SNAP, or as VOL is now. It takes room only for what is
    written to it.
    """
    start = parse_snapshot(source) if "@" in source else check_name(source, "volume name")
    options = CloneOptions(start, check_name(name, "volume name"))
    ask_daemon(context, home, as_json, clone, options)
