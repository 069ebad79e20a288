"""The daemon: opens or creates the pool, serves it, and stops cleanly.

Nesting, from the outside in; each closes before what is around it:

    signals           SIGTERM and SIGINT: stop, then hurry
      devices         files and disks, locked
        pool          recovery before, checkpoint after
          NBD         exports on HOME/nbd.sock and TCP
          API         on HOME/control.sock
          watcher     stops everything when the pool fails

READY is told only when the pool is recovered and both listeners answer. Stopping: no new
clients, a moment for requests that are under way, then the last checkpoint. A second signal
skips the rest: what was flushed is durable without it.
"""

import logging
import os
import shlex
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import trio

from admin import __version__
from admin.api_server import serve_api
from admin.config import Config
from admin.devices import create, explain_missing, look, opened, warn_of_thin_files
from admin.errors import AdminError
from admin.exports import NbdService
from admin.home import Home
from admin.notify import notify
from admin.plan import Plan, make_plan, resolve_without
from admin.record import MemberRecord, new_record, read_record, write_record
from admin.reports import ReadyReport
from admin.status import DaemonInfo
from blockdev.errors import DeviceError
from storage.errors import MissingMemberError, PoolError
from storage.info import PoolInfo
from storage.pool import Pool, PoolSettings, open_pool

_log = logging.getLogger("cenote.daemon")

STOP_GRACE_S = 5.0
"""How long requests under way may take to finish once a stop was asked for."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a daemon is told to do. `ready` is called once everything answers."""

    home: Home
    config: Config
    without: tuple[str, ...]
    format_paths: tuple[Path, ...]
    home_words: str
    ready: Callable[[ReadyReport], None]


def run_daemon(orders: Orders) -> None:
    """Serve until SIGTERM or SIGINT; the caller holds the home.

    Raises:
        DeviceError: the pool could not be opened, or failed while it was served.
        AdminError: creating or serving was refused.
    """
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
    plan = make_plan(await look(members), record, format_paths=orders.format_paths, without=without)
    created = plan.create
    if created:
        notify("STATUS=creating the pool")
        await create(config, plan)
        plan = make_plan(await look(members), record)
    if record is None:
        identity = next(one.pool for one in plan.use if one.pool is not None)
        record = new_record(identity, config.file)
    write_record(home, record)
    warn_of_thin_files(plan.use)
    notify("STATUS=opening the pool")
    async with _opened_pool(config, plan, without) as pool:
        known = {member.uuid: member for member in record.members}
        for info in pool.info().members:
            if Path(info.name).is_absolute():
                known[info.uuid] = MemberRecord(info.uuid, info.name)
        write_record(home, replace(record, members=list(known.values())))
        await _serve_pool(orders, pool, stop, created=created)
        notify("STOPPING=1", "STATUS=writing the last checkpoint")
    _log.info("stopped")


@asynccontextmanager
async def _opened_pool(
    config: Config, plan: Plan, without: dict[UUID, str | None]
) -> AsyncIterator[Pool]:
    settings = PoolSettings(
        page_cache_bytes=config.cache.page_bytes,
        extent_cache_bytes=config.cache.extent_bytes,
        buffer_bytes=config.cache.buffer_bytes,
    )
    async with opened(plan.use) as devices, AsyncExitStack() as stack:
        try:
            pool = await stack.enter_async_context(
                open_pool(devices, settings=settings, without=list(without))
            )
        except MissingMemberError as error:
            raise explain_missing(error, plan.absent) from error
        yield pool


async def _serve_pool(orders: Orders, pool: Pool, stop: trio.Event, *, created: bool) -> None:
    nbd = NbdService(pool, orders.config.nbd, orders.home)
    api_stop = trio.Event()
    async with trio.open_nursery() as nursery:
        try:
            endpoints = await nursery.start(nbd.run)
            daemon = DaemonInfo(__version__, os.getpid(), str(orders.home.path), endpoints)
            await nursery.start(serve_api, pool, daemon, nbd.clients, orders.home, api_stop)
            info = pool.info()
            _warn_of_configuration(orders.config, info)
            volumes = sorted(volume.name for volume in pool.volumes())
            notify("READY=1", f"STATUS=serving {len(volumes)} volumes, {info.health}")
            commands = _suggestions(daemon, volumes, orders.home_words)
            orders.ready(ReadyReport(daemon, info, created, volumes, commands))
            async with trio.open_nursery() as waiting:
                waiting.start_soon(_raise_failure, pool)
                await stop.wait()
                waiting.cancel_scope.cancel()
            notify("STOPPING=1", "STATUS=closing connections")
            with trio.move_on_after(STOP_GRACE_S):
                await nbd.stop()
        finally:
            api_stop.set()
            nursery.cancel_scope.cancel()


async def _raise_failure(pool: Pool) -> None:
    await pool.failed.wait()
    raise pool.failure or PoolError("the pool failed")


def _warn_of_configuration(config: Config, info: PoolInfo) -> None:
    if config.file is not None and config.pool.copies != info.copies:
        _log.warning(
            "copies is fixed when a pool is created: pool=%d config=%d",
            info.copies, config.pool.copies,
        )  # fmt: skip
    if len({member.host for member in info.members}) < info.copies:
        _log.warning("fewer hosts than copies: losing one machine may lose every copy of some data")
    if info.health != "ok":
        _log.warning("the pool is %s; see: cenote pool status", info.health)


def _suggestions(daemon: DaemonInfo, volumes: list[str], home_words: str) -> list[str]:
    """Three commands worth trying next, to be copied."""
    name = volumes[0] if volumes else "demo"
    first = "volume list" if volumes else f"volume create {name} --size 20G"
    disk = shlex.quote(f"file={daemon.uri(name)},format=raw,if=virtio,discard=unmap")
    return [
        f"cenote {first}{home_words}",
        f"qemu-system-x86_64 -accel kvm -m 2G -drive {disk}",
        f"cenote snapshot create {name}@first{home_words}",
    ]


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that says most: one of ours where there is one, else the first."""
    ours = group.subgroup((DeviceError, AdminError))
    error: BaseException = ours or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
