"""Actions that change volumes, snapshots and clones."""

from collections.abc import Awaitable, Callable
from functools import partial

from blockdev.errors import DeviceError
from storage.errors import InUseError, InvalidArgumentError, NotFoundError
from tests.crash.model import BLOCK
from tests.sim.client import SIZES, SNAPSHOTS_MAX, VOLUMES_MAX, Client
from tests.sim.model import Wrong

# -- the catalogue


async def create(client: Client) -> None:
    model = client.model
    if len(model.names) < VOLUMES_MAX:
        name = client.new_name()
        size = client.rng.choice([*SIZES, client.rng.randint(1, 600) * BLOCK])
        await client.change(
            partial(model.create, name, size),
            partial(client.pool.management.create_volume, name, size),
        )


async def begin(client: Client) -> None:
    """Create the first volumes of an empty pool."""
    for _ in range(2):
        await create(client)


async def snapshot(client: Client) -> None:
    name = client.pick()
    if name is not None and len(client.model.names[name].snaps) < SNAPSHOTS_MAX:
        snap = client.new_name()
        await client.change(
            partial(client.model.snapshot, [name], snap),
            partial(client.pool.management.create_snapshot, name, snap),
        )


async def group(client: Client) -> None:
    model = client.model
    names = [n for n in client.volumes() if len(model.names[n].snaps) < SNAPSHOTS_MAX]
    if names:
        snap = client.new_name()
        await client.change(
            partial(model.snapshot, names, snap),
            partial(client.pool.management.create_snapshots, names, snap),
        )


def _a_snapshot(client: Client) -> tuple[str, str] | None:
    found = [(n, snap) for n in client.volumes() for snap in client.model.names[n].snaps]
    return client.rng.choice(found) if found else None


def _is_open(client: Client, *exports: str) -> bool:
    return any(client.pool.registry.handles(export) for export in exports)


async def clone(client: Client) -> None:
    found = _a_snapshot(client)
    if found is not None and len(client.model.names) < VOLUMES_MAX:
        new = client.new_name()
        await client.change(
            partial(client.model.clone, *found, new),
            partial(client.pool.management.clone, *found, new),
        )


async def fork(client: Client) -> None:
    name = client.pick()
    if name is not None and len(client.model.names) < VOLUMES_MAX:
        new = client.new_name()
        await client.change(
            partial(client.model.clone, name, None, new),
            partial(client.pool.management.clone, name, None, new),
        )


async def _exclusive(
    client: Client, exports: list[str], apply: Callable[[], int],
    call: Callable[[], Awaitable[object]],
) -> None:  # fmt: skip
    """Make a change that the pool must refuse while a client has one of the exports open."""
    if not _is_open(client, *exports):
        await client.change(apply, call)
        return
    try:
        await call()
    except InUseError:
        return
    raise Wrong("a volume was changed under its clients")


async def rollback(client: Client) -> None:
    if (found := _a_snapshot(client)) is not None:
        await _exclusive(
            client, [found[0]], partial(client.model.rollback, *found),
            partial(client.pool.management.rollback, *found),
        )  # fmt: skip


async def delete_snapshot(client: Client) -> None:
    if (found := _a_snapshot(client)) is not None:
        await _exclusive(
            client, ["@".join(found)], partial(client.model.delete_snapshot, *found),
            partial(client.pool.management.delete_snapshot, *found),
        )  # fmt: skip


async def rename_snapshot(client: Client) -> None:
    if (found := _a_snapshot(client)) is not None:
        new = client.new_name()
        await _exclusive(
            client, ["@".join(found)], partial(client.model.rename_snapshot, *found, new),
            partial(client.pool.management.rename_snapshot, *found, new),
        )  # fmt: skip


def _exports(client: Client, name: str) -> list[str]:
    return [name, *(f"{name}@{snap}" for snap in client.model.names[name].snaps)]


async def delete(client: Client) -> None:
    """Delete a volume with its snapshots, also one that has clones."""
    name = client.pick()
    if name is not None and len(client.model.names) > 1:
        await _exclusive(
            client, _exports(client, name), partial(client.model.delete, name),
            partial(client.pool.management.delete_volume, name, snapshots=True),
        )  # fmt: skip


async def rename(client: Client) -> None:
    if (name := client.pick()) is not None:
        new = client.new_name()
        await _exclusive(
            client, _exports(client, name), partial(client.model.rename, name, new),
            partial(client.pool.management.rename_volume, name, new),
        )  # fmt: skip


async def promote(client: Client) -> None:
    name = client.pick()
    source = None if name is None else client.model.promotable(name)
    if name is None or source is None or source in client.busy or client.model.flattens:
        return
    await _exclusive(
        client, [f"{source}@{snap}" for snap in client.model.shared(name, source)],
        partial(client.model.promote, name, source), partial(client.pool.management.promote, name),
    )  # fmt: skip


async def flatten(client: Client) -> None:
    """Flatten a clone in the background; no content changes."""
    name = client.pick()
    if name is None or not client.model.names[name].line or client.pool.failure is not None:
        return
    client.model.flattens = True
    at = client.model.tick()
    try:
        await client.pool.management.flatten(name)
    except (NotFoundError, InvalidArgumentError):
        return  # because the volume is independent already, or was deleted meanwhile
    except DeviceError as error:
        client.allows(error)
        return
    client.model.is_durable(at)


async def grow(client: Client) -> None:
    if (name := client.pick()) is not None:
        size = client.model.names[name].size_bytes + client.rng.randint(1, 64) * BLOCK
        await client.change(
            partial(client.model.resize, name, size),
            partial(client.pool.management.resize_volume, name, size),
        )


async def shrink(client: Client) -> None:
    """Zero the range behind the new size, then shrink; no other client uses the volume then."""
    name = client.pick()
    if name is None or _is_open(client, name):
        return
    old = client.model.names[name].size_bytes
    size = client.rng.randint(max(1, old // BLOCK - 300), old // BLOCK) * BLOCK
    if size == old:
        return
    client.busy.add(name)
    try:
        write = client.model.write(name, size, old - size, None)
        at = client.model.resize(name, old, size)
        if await client.tries(client.pool.management.resize_volume(name, size, shrink=True)):
            write.returned(fua=True)
            client.model.is_durable(at)  # not later: later calls may have been logged before it
            client.model.resize(name, size)
        else:
            write.failed()
            client.model.resize(name, client.pool.management.volume(name).size_bytes)
    finally:
        client.busy.discard(name)
