"""`cenote pool`: the state of the pool."""

import typer

from admin.api.client import Client
from admin.cli.commands.common import HomeOption, JsonOption, ask_daemon, examples, new_noun
from admin.cli.commands.space import add_to_pool
from admin.reports.pool import PoolReport

app = new_noun("The pool: state, room and members.")


def status(client: Client, _: None) -> PoolReport:
    """Report the state of the pool."""
    return PoolReport(client.pool(), client.daemon())


@app.command("status", epilog=examples("cenote pool status", "cenote pool status --json"))
def status_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Show health, room and members."""
    ask_daemon(context, home, as_json, status, None)


add_to_pool(app)
