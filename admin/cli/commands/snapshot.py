"""`cenote snapshot`: make, list, delete and go back to snapshots."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import (
    DisconnectOption,
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
from admin.cli.commands.naming import add_to_snapshots
from admin.names import SnapshotName, check_name, parse_snapshot
from admin.reports.snapshots import SnapshotReport, SnapshotsReport
from admin.reports.volumes import DeletedReport, TreeReport, VolumeReport
from storage.errors import InvalidArgumentError, NotFoundError
from storage.info import TreeNode

app = new_noun("Snapshots: volumes as they once were, VOL@SNAP.")


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """A snapshot; `yes` skips the question where there is one, `disconnect` goes on in spite
    of clients."""

    name: SnapshotName
    yes: bool = False
    disconnect: bool = False


@dataclass(frozen=True, slots=True)
class ListOptions:
    """All snapshots, or those of one volume."""

    volume: str | None


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """All volumes, or those in the tree of one."""

    volume: str | None


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """Several volumes, and one name for their snapshots."""

    volumes: list[str]
    snapshot: str


def create(client: Client, options: SnapshotOptions) -> SnapshotReport:
    """Create a snapshot."""
    return SnapshotReport("created snapshot", client.create_snapshot(options.name))


def create_group(client: Client, options: GroupOptions) -> SnapshotsReport:
    """Create snapshots of several volumes."""
    return SnapshotsReport(client.create_snapshots(options.volumes, options.snapshot))


def list_all(client: Client, options: ListOptions) -> SnapshotsReport:
    """List snapshots."""
    return SnapshotsReport(client.snapshots(options.volume))


def tree(client: Client, options: TreeOptions) -> TreeReport:
    """Show the tree of volumes, snapshots and clones."""
    nodes = client.tree()
    return TreeReport(nodes if options.volume is None else family_of(options.volume, nodes))


def family_of(volume: str, nodes: list[TreeNode]) -> list[TreeNode]:
    """The nodes of the tree that a volume is in.

    Raises:
        NotFoundError: there is no such volume.
    """
    by_name = {node.name: node for node in nodes}

    def root(node: TreeNode) -> str:
        while node.parent is not None:
            node = by_name[node.parent]
        return node.name

    if volume not in by_name:
        raise NotFoundError(f"no volume is called {volume!r}")
    return [node for node in nodes if root(node) == root(by_name[volume])]


def delete(client: Client, options: SnapshotOptions) -> DeletedReport:
    """Delete a snapshot that exists, after asking."""
    client.snapshot(options.name)
    confirm(f"Delete snapshot {options.name}?", yes=options.yes)
    client.delete_snapshot(options.name, disconnect=options.disconnect)
    return DeletedReport("snapshot", str(options.name))


def rollback(client: Client, options: SnapshotOptions) -> VolumeReport:
    """Roll a volume back to a snapshot that exists, after asking."""
    name = options.name
    client.snapshot(name)
    question = f"Discard everything written to {name.volume} since {name}?"
    confirm(question, yes=options.yes)
    volume = client.rollback(name, disconnect=options.disconnect)
    return VolumeReport("rolled back volume", volume, uri_of(client, volume.name))


@app.command(
    "create",
    epilog=examples(
        "cenote snapshot create root@before-upgrade", "cenote snapshot create data@noon log@noon"
    ),
)
def create_command(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="VOL@SNAP...", show_default=False)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a volume as it is now. Costs one record, however large the volume.

    Several volumes, with the same SNAP, are kept as they are at one and the same moment.
    """
    parsed = [parse_snapshot(name) for name in names]
    if len(parsed) == 1:
        ask_daemon(context, home, as_json, create, SnapshotOptions(parsed[0]))
        return
    if len({one.snapshot for one in parsed}) > 1:
        raise InvalidArgumentError("snapshots of one moment have one name: VOL1@SNAP VOL2@SNAP")
    group = GroupOptions([one.volume for one in parsed], parsed[0].snapshot)
    ask_daemon(context, home, as_json, create_group, group)


@app.command(
    "list",
    epilog=examples(
        "cenote snapshot list",
        "cenote snapshot list root --json",
        "cenote snapshot list --tree",
    ),
)
def list_command(
    context: typer.Context,
    volume: Annotated[str | None, typer.Argument(metavar="VOL", show_default=False)] = None,
    as_tree: Annotated[
        bool, typer.Option("--tree", help="Show volumes, snapshots and clones as a tree.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List snapshots, of all volumes or of one."""
    name = None if volume is None else check_name(volume, "volume name")
    if as_tree:
        ask_daemon(context, home, as_json, tree, TreeOptions(name))
    else:
        ask_daemon(context, home, as_json, list_all, ListOptions(name))


@app.command("delete", epilog=examples("cenote snapshot delete root@before-upgrade"))
def delete_command(
    context: typer.Context,
    name: SnapshotArgument,
    disconnect: DisconnectOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a snapshot; the volume keeps its content. Without a terminal, --yes is needed."""
    options = SnapshotOptions(parse_snapshot(name), yes, disconnect)
    ask_daemon(context, home, as_json, delete, options)


@app.command(
    "rollback",
    epilog=examples(
        "cenote snapshot rollback root@before-upgrade",
        "cenote snapshot rollback root@before-upgrade --disconnect --yes",
    ),
)
def rollback_command(
    context: typer.Context,
    name: SnapshotArgument,
    disconnect: DisconnectOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume what it was. Without a terminal, --yes is needed.

    While the volume has clients it stays as it is, unless --disconnect says otherwise. Then stop
    the guests themselves before: one that connects anew meets other data than it remembers.
    """
    options = SnapshotOptions(parse_snapshot(name), yes, disconnect)
    ask_daemon(context, home, as_json, rollback, options)


add_to_snapshots(app)
