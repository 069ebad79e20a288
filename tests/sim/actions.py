"""What clients do to a pool: one function each, found by its name in `ACTIONS`.

To add one: write `async def _name(client)`, which draws from `client.rng`, asks the model what
there is, tells it what it begins and what has returned, and put its weight into `ACTIONS`. Every
engine call goes through `client.tries` or `client.change`, which know the errors that are allowed.
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
"""How often each is planned, and what it does."""

WEIGHTS = {kind: weight for kind, (weight, _) in ACTIONS.items()}


async def act(client: Client, kind: str, seed: int) -> None:
    """Let a client do one thing; `seed` decides what exactly."""
    client.rng.seed(seed)
    await ACTIONS[kind][1](client)
