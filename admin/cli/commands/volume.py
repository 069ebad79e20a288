"""`cenote volume`: make, list, resize and delete volumes."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands import space
from admin.cli.commands.common import (
    DisconnectOption,
    HomeOption,
    JsonOption,
    SizeOption,
    VolumeArgument,
    YesOption,
    ask_daemon,
    confirm,
    examples,
    new_noun,
    size_argument,
    uri_of,
)
from admin.cli.commands.flatten import add_flatten
from admin.cli.commands.naming import add_to_volumes
from admin.cli.commands.snapshot import TreeOptions, tree
from admin.names import check_name
from admin.reports.volumes import DeletedReport, ResizedReport, VolumeReport, VolumesReport
from admin.sizes import human

app = new_noun("Volumes: thin disks, served under their names.")


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """A volume to create."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ResizeOptions:
    """A volume and its new size; `yes` skips the question before shrinking."""

    name: str
    size_bytes: int
    shrink: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """A volume to delete; `snapshots` deletes its snapshots too, `disconnect` disconnects its
    clients, `yes` skips the question."""

    name: str
    snapshots: bool
    disconnect: bool
    yes: bool


def create(client: Client, options: CreateOptions) -> VolumeReport:
    """Create a volume."""
    volume = client.create_volume(options.name, options.size_bytes)
    return VolumeReport("created volume", volume, uri_of(client, volume.name))


def list_all(client: Client, _: None) -> VolumesReport:
    """List the volumes."""
    return VolumesReport(client.volumes())


def resize(client: Client, options: ResizeOptions) -> ResizedReport:
    """Resize a volume, and list the clients that still see its old size."""
    if options.shrink:
        question = f"Discard what {options.name} holds behind {human(options.size_bytes)}?"
        confirm(question, yes=options.yes)
    volume = client.resize_volume(options.name, options.size_bytes, shrink=options.shrink)
    stale = [
        one
        for one in client.clients()
        if one.export == volume.name and one.size_bytes != volume.size_bytes
    ]
    return ResizedReport(volume, uri_of(client, volume.name), stale)


def delete(client: Client, options: DeleteOptions) -> DeletedReport:
    """Delete a volume after asking."""
    volume = client.volume(options.name)
    also = f" and its snapshots ({volume.snapshots})" if options.snapshots else ""
    and_clients = f", disconnecting its clients ({volume.clients})" if options.disconnect else ""
    question = f"Delete volume {volume.name}, {human(volume.size_bytes)}{also}{and_clients}?"
    confirm(question, yes=options.yes)
    client.delete_volume(options.name, snapshots=options.snapshots, disconnect=options.disconnect)
    return DeletedReport("volume", options.name)


@app.command("create", epilog=examples("cenote volume create root --size 20G"))
def create_command(
    context: typer.Context,
    name: VolumeArgument,
    size: SizeOption,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an empty volume. It takes no room until it is written."""
    options = CreateOptions(check_name(name, "volume name"), size_argument(size))
    ask_daemon(context, home, as_json, create, options)


@app.command("list", epilog=examples("cenote volume list", "cenote volume list --json"))
def list_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """List volumes."""
    ask_daemon(context, home, as_json, list_all, None)


@app.command("tree", epilog=examples("cenote volume tree", "cenote volume tree root --json"))
def tree_command(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show volumes, snapshots and clones as a tree, or the family of one volume.

    Also what is left of deleted ones: merged into what stands on it, or given back, in the
    background.
    """
    volume = None if name is None else check_name(name, "volume name")
    ask_daemon(context, home, as_json, tree, TreeOptions(volume))


@app.command(
    "resize",
    epilog=examples(
        "cenote volume resize root --size 40G", "cenote volume resize root --size 10G --shrink"
    ),
)
def resize_command(
    context: typer.Context,
    name: VolumeArgument,
    size: SizeOption,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Cut off what lies behind the new size.")
    ] = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grow a volume, also while it is in use, or shrink one that is not.

    NBD cannot tell a client that its disk has grown: those that are connected see the old size
    until they connect anew, and the command names them.
    """
    options = ResizeOptions(check_name(name, "volume name"), size_argument(size), shrink, yes)
    ask_daemon(context, home, as_json, resize, options)


@app.command(
    "delete",
    epilog=examples(
        "cenote volume delete root",
        "cenote volume delete root --snapshots --yes",
        "cenote volume delete root --disconnect",
    ),
)
def delete_command(
    context: typer.Context,
    name: VolumeArgument,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Delete its snapshots too.")
    ] = False,
    disconnect: DisconnectOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a volume. Without a terminal, --yes is needed.

    While it has clients it is not deleted, unless --disconnect says so.
    """
    options = DeleteOptions(check_name(name, "volume name"), snapshots, disconnect, yes)
    ask_daemon(context, home, as_json, delete, options)


add_to_volumes(app)
space.add_to_volumes(app)
add_flatten(app)
