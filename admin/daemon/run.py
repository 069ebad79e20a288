"""The daemon: opens or creates the pool, serves it, and stops cleanly.

Nesting, from the outside in; each part closes before the one around it:

    signals           SIGTERM and SIGINT: stop, then hurry
      devices         files and disks, locked
        pool          recovery before, checkpoint after
          NBD         exports on HOME/nbd.sock and TCP
          API         on HOME/control.sock
          watchers    stop everything when the pool fails; warn when it fills up

The daemon reports READY only when the pool is recovered and the listeners answer. To stop, it takes
no new clients, gives requests under way a moment, and writes the last checkpoint. A second signal
skips the rest: flushed data is durable without it.
"""

import gc
import logging
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from uuid import UUID

import trio

from admin.config.load import Config
from admin.daemon.devices import OpenDevices, create, explain_missing, look, warn_of_thin_files
from admin.daemon.membership import Membership
from admin.daemon.notify import notify
from admin.daemon.pool_record import new_record, read_record, write_record
from admin.daemon.service import Orders, serve_pool
from admin.daemon.start_plan import Plan, make_plan, resolve_without, set_aside
from admin.errors import AdminError
from blockdev.errors import DeviceError
from storage.errors import MissingMemberError
from storage.pool import Pool, PoolSettings, open_pool

_log = logging.getLogger("cenote.daemon")

YOUNG_OBJECTS = 20_000
"""New objects between two runs of Python's cycle collector; a commit makes some thousand objects
for a moment. With the default of 700, the runs took a tenth of the time of 1 MiB writes; a run over
20,000 objects takes 0.5 ms."""


def run_daemon(orders: Orders) -> None:
    """Serve until SIGTERM or SIGINT; the caller holds the home.

    Raises:
        DeviceError: the pool could not be opened, or failed while it was served.
        AdminError: creating or serving was refused.
    """
    _raise_descriptor_limit()
    gc.freeze()  # modules and their functions are never garbage
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    try:
        trio.run(_run, orders)
    except BaseExceptionGroup as group:
        raise _first_leaf(group) from group


async def _run(orders: Orders) -> None:
    stop, hurry = trio.Event(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, stop, hurry)
        with hurry:
            await _serve_members(orders, stop)
        if hurry.cancelled_caught:
            _log.warning("stopped in a hurry; the next start replays what was not checkpointed")
        nursery.cancel_scope.cancel()


async def _watch_signals(
    stop: trio.Event,
    hurry: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            name = signal.Signals(number).name
            if stop.is_set():
                _log.warning("%s again: not waiting for anything", name)
                hurry.cancel()
            else:
                _log.info("%s: stopping", name)
                stop.set()


async def _serve_members(orders: Orders, stop: trio.Event) -> None:
    home, config = orders.home, orders.config
    record = read_record(home)
    without = resolve_without(orders.without, record)
    members = [member for member in config.members if str(member.path) not in without.values()]
    found, _ = set_aside(await look(members))
    plan = make_plan(found, record, format_paths=orders.format_paths, without=without)
    created = plan.create
    if created:
        notify("STATUS=creating the pool")
        await create(config, plan)
        plan = make_plan(await look(members), record)
    if record is None:
        identity = next(one.pool for one in plan.use if one.pool is not None)
        record = new_record(identity)
    record = replace(record, config=str(config.file.absolute()) if config.file else None)
    write_record(home, record)
    warn_of_thin_files(plan.use)
    notify("STATUS=opening the pool")
    async with _opened_pool(config, plan, without) as (pool, devices):
        membership = Membership(pool, devices, home, record)
        membership.settle()
        await serve_pool(orders, pool, membership, stop, created=created)
        notify("STATUS=writing the last checkpoint")
    _log.info("stopped")


@asynccontextmanager
async def _opened_pool(
    config: Config, plan: Plan, without: dict[UUID, str | None]
) -> AsyncIterator[tuple[Pool, OpenDevices]]:
    settings = PoolSettings(
        page_cache_bytes=config.cache.page_bytes,
        extent_cache_bytes=config.cache.extent_bytes,
        buffer_bytes=config.cache.buffer_bytes,
    )
    async with OpenDevices() as devices, AsyncExitStack() as stack:
        offered = [devices.open(one.member) for one in plan.use]
        try:
            pool = await stack.enter_async_context(
                open_pool(offered, settings=settings, without=list(without))
            )
        except MissingMemberError as error:
            raise explain_missing(error, plan.absent) from error
        yield pool, devices


def _raise_descriptor_limit() -> None:
    """Raise the limit of open files to the hard limit: each client takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report: a DeviceError or AdminError if the group has one, else the first."""
    ours = group.subgroup((DeviceError, AdminError))
    error: BaseException = ours or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
