"""`cenote client`: list and disconnect NBD clients."""

from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.cli.commands.common import HomeOption, JsonOption, ask_daemon, examples, new_noun
from admin.errors import UsageError
from admin.reports.clients import ClientsReport, DisconnectedReport, ExportsReport

app = new_noun("Clients: NBD connections to volumes and snapshots.")


@dataclass(frozen=True, slots=True)
class DisconnectOptions:
    """Clients by number, those of an export, or all if neither is given."""

    numbers: list[int] | None
    export: str | None


def list_all(client: Client, _: None) -> ClientsReport:
    """List the connections."""
    return ClientsReport(client.clients())


def list_exports(client: Client, _: None) -> ExportsReport:
    """List the exports that had clients, with their counts."""
    return ExportsReport(client.exports())


def disconnect(client: Client, options: DisconnectOptions) -> DisconnectedReport:
    """End connections."""
    return DisconnectedReport(client.disconnect(numbers=options.numbers, export=options.export))


@app.command(
    "list",
    epilog=examples(
        "cenote client list", "cenote client list --exports", "cenote client list --json"
    ),
)
def list_command(
    context: typer.Context,
    exports: Annotated[
        bool,
        typer.Option("--exports", help="Sum up by export, with the clients that left."),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List who is connected, to what, and what they did.

    A client is a connection: some use several to one volume. The user is known on the Unix
    socket, the certificate where nbd.client_ca is set.
    """
    ask_daemon(context, home, as_json, list_exports if exports else list_all, None)


@app.command(
    "disconnect",
    epilog=examples(
        "cenote client disconnect 7",
        "cenote client disconnect 7 9",
        "cenote client disconnect --export root",
        "cenote client disconnect --all --json",
    ),
)
def disconnect_command(
    context: typer.Context,
    numbers: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID", help="As `cenote client list` says.", show_default=False),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="NAME",
            help="All clients of this volume, or VOL@SNAP.",
            show_default=False,
        ),
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All clients.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """End connections, with a moment for requests in flight.

    Returns when nothing of them is left. Nothing keeps a client from connecting anew.
    """
    if [bool(numbers), export is not None, everyone].count(True) != 1:
        raise UsageError("say whom to disconnect: an ID or more, --export NAME or --all")
    options = DisconnectOptions(numbers or None, export)
    ask_daemon(context, home, as_json, disconnect, options)
