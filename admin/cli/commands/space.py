"""`cenote pool df` and `cenote volume df`: the use of space."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import HomeOption, JsonOption, ask_daemon, examples
from admin.names import check_name
from admin.reports.pool import PoolSpaceReport
from admin.reports.volumes import VolumeSpaceReport

NowOption = Annotated[
    bool, typer.Option("--now", help="Write a checkpoint first, so that figures are of now.")
]


@dataclass(frozen=True, slots=True)
class SpaceOptions:
    """A volume, None for all, and whether to write a checkpoint first, for exact figures."""

    volume: str | None
    now: bool


def pool_df(client: Client, options: SpaceOptions) -> PoolSpaceReport:
    """Report the space of the pool."""
    return PoolSpaceReport(client.pool_space(now=options.now))


def volume_df(client: Client, options: SpaceOptions) -> VolumeSpaceReport:
    """Report the space of volumes."""
    lines = client.volume_space(options.volume, now=options.now)
    limits = {volume.name: volume.space for volume in client.volumes()}
    return VolumeSpaceReport(lines, {line.name: limits.get(line.name, {}) for line in lines})


def add_to_pool(app: typer.Typer) -> None:
    """Add the command of `cenote pool`."""

    @app.command("df", epilog=examples("cenote pool df", "cenote pool df --now --json"))
    def df_command(
        context: typer.Context,
        now: NowOption = False,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show where the bytes of the pool are. The parts add up.

        Figures are of one copy, and as of the last checkpoint, whose commit is named; what was
        begun since is counted as newer.

        \b
          unique     data that one volume reaches, itself or through its snapshots
          shared     data that several volumes reach, counted once
          deleted    of deleted volumes and snapshots; comes back by itself
          map        where every block lies
          dead       overwritten or deleted, and headers of the log; cleaning gives it back
          unwritten  ends of segments
          newer      segments begun since the last checkpoint
          cooling    freed, usable after the next checkpoint
          free       not used; the reserve is the part that is never filled with data, promised
                     the part that is kept for volumes with reservations

        For each member, used, cooling and free and what superblocks take add up to its size.
        """
        ask_daemon(context, home, as_json, pool_df, SpaceOptions(None, now))


def add_to_volumes(app: typer.Typer) -> None:
    """Add the command of `cenote volume`."""

    @app.command(
        "df",
        epilog=examples(
            "cenote volume df", "cenote volume df root --now", "cenote volume df --json"
        ),
    )
    def df_command(
        context: typer.Context,
        name: Annotated[str | None, typer.Argument(metavar="[NAME]", show_default=False)] = None,
        now: NowOption = False,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show what volumes and snapshots take, as of the last checkpoint.

        \b
          size     what clients see
          mapped   data before compression, in all versions that are kept
          stored   after compression
          unique   of that, what deleting it gives back: a volume with its snapshots, or what
                   only this snapshot reaches
          shared   of that, what other volumes reach too; for snapshots, also the volume itself
                   and other snapshots
          written  stored since the last snapshot; for a snapshot, since the one before it
          own      unique data before compression: what reservation and cap count

        The unique bytes of all volumes, what is shared, counted once, and what is deleted add up
        to the data of the pool: see cenote pool df.
        """
        which = None if name is None else check_name(name, "volume name")
        ask_daemon(context, home, as_json, volume_df, SpaceOptions(which, now))
