"""`cenote volume`: make, list, resize and delete volumes."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.client import Client
from admin.commands.common import (
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
from admin.names import check_name
from admin.reports import DeletedReport, VolumeReport, VolumesReport
from admin.sizes import human

app = new_noun("Volumes: thin disks, served under their names.")


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """A volume to create."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ResizeOptions:
    """A volume and its new size."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """A volume to delete, with its snapshots if so wished; `yes` skips the question."""

    name: str
    snapshots: bool
    yes: bool


def create(client: Client, options: CreateOptions) -> VolumeReport:
    """Create a volume."""
    volume = client.create_volume(options.name, options.size_bytes)
    return VolumeReport("created volume", volume, uri_of(client, volume.name))


def list_all(client: Client, _: None) -> VolumesReport:
    """List the volumes."""
    return VolumesReport(client.volumes())


def resize(client: Client, options: ResizeOptions) -> VolumeReport:
    """Resize a volume."""
    volume = client.resize_volume(options.name, options.size_bytes)
    return VolumeReport("resized volume", volume, uri_of(client, volume.name))


def delete(client: Client, options: DeleteOptions) -> DeletedReport:
    """Delete a volume after asking."""
    volume = client.volume(options.name)
    also = f" and its snapshots ({volume.snapshots})" if options.snapshots else ""
    question = f"Delete volume {volume.name}, {human(volume.size_bytes)}{also}?"
    confirm(question, yes=options.yes)
    client.delete_volume(options.name, snapshots=options.snapshots)
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


@app.command("resize", epilog=examples("cenote volume resize root --size 40G"))
def resize_command(
    context: typer.Context,
    name: VolumeArgument,
    size: SizeOption,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grow a volume, also while it is in use."""
    options = ResizeOptions(check_name(name, "volume name"), size_argument(size))
    ask_daemon(context, home, as_json, resize, options)


@app.command(
    "delete",
    epilog=examples("cenote volume delete root", "cenote volume delete root --snapshots --yes"),
)
def delete_command(
    context: typer.Context,
    name: VolumeArgument,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Delete its snapshots too.")
    ] = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a volume. Without a terminal, --yes is needed."""
    options = DeleteOptions(check_name(name, "volume name"), snapshots, yes)
    ask_daemon(context, home, as_json, delete, options)
