"""`cenote volume flatten`: make a clone independent of other volumes."""

import time
from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import (
    HomeOption,
    JsonOption,
    VolumeArgument,
    ask_daemon,
    examples,
    uri_of,
)
from admin.errors import WaitsError
from admin.names import check_name
from admin.reports.output import progress
from admin.reports.volumes import VolumeReport

LOOK_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class FlattenOptions:
    """A volume to flatten; `wait` until it is done, or `cancel` it."""

    name: str
    wait: bool
    cancel: bool


def flatten(client: Client, options: FlattenOptions) -> VolumeReport:
    """Begin to flatten a clone and show the progress until it is done, or stop flattening it.

    Raises:
        WaitsError: the daemon cannot go on now; it continues by itself as soon as it can.
    """
    name = options.name
    volume = client.flatten(name, on=not options.cancel)
    if options.cancel:
        return VolumeReport("no longer flattening volume", volume, uri_of(client, name))
    if not options.wait:
        return VolumeReport("flattening in the background: volume", volume, uri_of(client, name))
    with progress() as show:
        while (how := volume.flattening) is not None:
            if how.error is not None:
                raise WaitsError(f"{name} is flattened as soon as that is possible: {how.error}")
            show("copying", how.pages_done, how.pages)
            time.sleep(LOOK_INTERVAL_S)
            volume = client.volume(name)
    return VolumeReport("flattened volume", volume, uri_of(client, name))


def add_flatten(app: typer.Typer) -> None:
    """Add the command to `cenote volume`."""

    @app.command(
        "flatten",
        epilog=examples(
            "cenote volume flatten test",
            "cenote volume flatten test --background",
            "cenote volume flatten test --cancel",
        ),
    )
    def flatten_command(
        context: typer.Context,
        name: VolumeArgument,
        background: Annotated[
            bool, typer.Option("--background", help="Do not wait until it is done.")
        ] = False,
        cancel: Annotated[
            bool, typer.Option("--cancel", help="Stop it; what is copied stays.")
        ] = False,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Give a clone copies of all that it inherits, so that it stands alone.

        Not needed to delete the origin: what a clone needs stays anyhow. It goes on in the
        background, also when this command is interrupted or the daemon restarted, while clients
        use the volume. The snapshots of the clone stand alone then, too.
        """
        options = FlattenOptions(check_name(name, "volume name"), not background, cancel)
        ask_daemon(context, home, as_json, flatten, options)
