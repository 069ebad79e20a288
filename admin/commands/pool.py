"""`cenote pool`: the state of the pool."""

import typer

from admin.client import Client
from admin.commands.common import HomeOption, JsonOption, ask_daemon, examples, new_noun
from admin.reports import ClientsReport, PoolReport

app = new_noun("The pool: state, room and members.")


def status(client: Client, _: None) -> PoolReport:
    """Report the state of the pool."""
    return PoolReport(client.pool(), client.daemon())


def clients(client: Client, _: None) -> ClientsReport:
    """Report who is connected."""
    return ClientsReport(client.clients())


@app.command("status", epilog=examples("cenote pool status", "cenote pool status --json"))
def status_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Show health, room and members."""
    ask_daemon(context, home, as_json, status, None)


@app.command("clients", epilog=examples("cenote pool clients"))
def clients_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """List NBD connections."""
    ask_daemon(context, home, as_json, clients, None)
