"""Table of the actions of clients on a pool: each is one function, found by its name in `ACTIONS`.

To add an action: write `async def name(client)`, which draws from `client.rng`, asks the model for
volumes and snapshots, and tells the model about each call when it begins and when it returns; then
put the action with its weight into `ACTIONS`. Every engine call goes through `client.tries` or
`client.change`, which know the errors that are allowed.
"""

from collections.abc import Awaitable, Callable

from tests.sim import catalogue_actions as catalogue
from tests.sim import data_actions as data
from tests.sim.client import Client

ACTIONS: dict[str, tuple[int, Callable[[Client], Awaitable[None]]]] = {
    "begin": (0, catalogue.begin),
    "write": (12, data.write),
    "write bytes": (8, data.write_bytes),
    "write fua": (3, data.write_fua),
    "burst": (5, data.burst),
    "beside": (5, data.beside),
    "zeroes": (4, data.zeroes),
    "trim": (4, data.trim),
    "flush": (6, data.flush),
    "flush beside": (3, data.flush_beside),
    "read": (5, data.read),
    "status": (2, data.status),
    "sleep": (3, data.sleep),
    "checkpoint": (3, data.checkpoint),
    "clean": (4, data.clean),
    "scrub": (2, data.scrub),
    "create": (2, catalogue.create),
    "snapshot": (3, catalogue.snapshot),
    "group": (1, catalogue.group),
    "clone": (2, catalogue.clone),
    "fork": (1, catalogue.fork),
    "rollback": (2, catalogue.rollback),
    "delete snapshot": (3, catalogue.delete_snapshot),
    "rename snapshot": (1, catalogue.rename_snapshot),
    "delete": (1, catalogue.delete),
    "rename": (1, catalogue.rename),
    "promote": (2, catalogue.promote),
    "flatten": (2, catalogue.flatten),
    "grow": (1, catalogue.grow),
    "shrink": (1, catalogue.shrink),
}
"""By name: the weight with which the action is planned, and its function."""

WEIGHTS = {kind: weight for kind, (weight, _) in ACTIONS.items()}


async def act(client: Client, kind: str, seed: int) -> None:
    """Let a client take one action; `seed` decides all of its random choices."""
    client.rng.seed(seed)
    await ACTIONS[kind][1](client)
