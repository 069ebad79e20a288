"""Serves an open pool over NBD and the control API, and watches it, until told to stop."""

import logging
import os
import shlex
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from admin import __version__
from admin.api.interfaces import MemberControl, PoolControl
from admin.api.server import serve_api
from admin.api.values import DaemonInfo
from admin.config.load import Config
from admin.daemon.exports import ExportingPool
from admin.daemon.nbd_service import NbdService
from admin.daemon.notify import notify
from admin.daemon.scheduler import Scheduler
from admin.daemon.scrub_file import FileKeeper
from admin.daemon.scrubbing import Scrubbing, ScrubEngine
from admin.daemon.watch import warn_of_filling
from admin.home import Home
from admin.reports.pool import ReadyReport
from blockdev.errors import DeviceError
from storage.errors import PoolError
from storage.info import PoolInfo

_log = logging.getLogger("cenote.daemon")

STOP_GRACE_S = 2.0
"""Time that a stop may take after the NBD server's grace for its clients; the server and the API
give up sooner by themselves."""


@dataclass(frozen=True, slots=True)
class Orders:
    """The configuration and options of a daemon. `ready` is called once all listeners answer."""

    home: Home
    config: Config
    without: tuple[str, ...]
    format_paths: tuple[Path, ...]
    program: str
    home_words: str
    """` --home DIR` if commands need it to find this daemon, else empty."""
    ready: Callable[[ReadyReport], None]
    tls: ssl.SSLContext | None = None
    """The loaded certificates and key, None without TLS."""


class ServedPool(PoolControl, ExportingPool, Protocol):
    """The parts of a pool that serving needs."""

    failed: trio.Event
    """Set when the pool takes no more writes."""

    @property
    def scrubber(self) -> ScrubEngine:
        """Scrubs the pool."""
        ...

    @property
    def failure(self) -> DeviceError | None:
        """The error for which the pool takes no more writes, or None."""
        ...


async def serve_pool(
    orders: Orders, pool: ServedPool, members: MemberControl, stop: trio.Event, *, created: bool
) -> None:
    """Serve until `stop` is set.

    Raises:
        DeviceError: the pool failed (in an exception group).
        HomeError: a socket cannot be made (in an exception group).
    """
    scheduler = Scheduler(pool.management, orders.config.schedules, partial(datetime.now, UTC))
    scrubs = Scrubbing(
        pool.info().uuid, pool.scrubber, orders.config.scrub, FileKeeper(orders.home),
        partial(datetime.now, UTC),
    )  # fmt: skip
    nbd = NbdService(pool, orders.config.nbd, orders.home, orders.tls)
    api_stop = trio.Event()
    async with trio.open_nursery() as nursery:
        endpoints = await nursery.start(nbd.run)
        daemon = DaemonInfo(__version__, os.getpid(), str(orders.home.path), endpoints)
        await nursery.start(
            serve_api, pool, daemon, nbd, members, scheduler, scrubs, orders.home, api_stop
        )
        info = pool.info()
        _warn_of_configuration(orders.config, info)
        volumes = sorted(
            volume.name for volume in pool.management.volumes() if volume.receiving is None
        )
        notify("READY=1", f"STATUS=serving, pool is {info.health}")
        commands = _suggestions(daemon, volumes, orders)
        orders.ready(ReadyReport(daemon, info, created, volumes, commands))
        async with trio.open_nursery() as watchers:
            watchers.start_soon(_raise_failure, pool)
            watchers.start_soon(warn_of_filling, pool.info)
            watchers.start_soon(scheduler.run)
            watchers.start_soon(scrubs.run)
            await stop.wait()
            watchers.cancel_scope.cancel()
        notify("STOPPING=1", "STATUS=closing connections")
        nbd.stop()
        api_stop.set()
        nursery.cancel_scope.deadline = (
            trio.current_time() + orders.config.nbd.limits.grace_s + STOP_GRACE_S
        )


async def _raise_failure(pool: ServedPool) -> None:
    await pool.failed.wait()
    raise pool.failure or PoolError("the pool failed")


def _warn_of_configuration(config: Config, info: PoolInfo) -> None:
    if config.file is not None and config.pool.copies != info.copies:
        _log.warning(
            "copies is fixed when a pool is created: pool=%d config=%d",
            info.copies,
            config.pool.copies,
        )
    if len({member.host for member in info.members}) < info.copies:
        _log.warning("fewer hosts than copies: losing one machine may lose every copy of some data")
    if info.health != "ok":
        _log.warning("the pool is %s; see: cenote pool status", info.health)


def _suggestions(daemon: DaemonInfo, volumes: list[str], orders: Orders) -> list[str]:
    """Three commands to try next, which can be copied."""
    name = volumes[0] if volumes else "demo"
    first = "volume list" if volumes else f"volume create {name} --size 20G"
    disk = shlex.quote(f"file={daemon.uri(name)},format=raw,if=virtio,discard=unmap")
    return [
        f"{orders.program} {first}{orders.home_words}",
        f"qemu-system-x86_64 -accel kvm -m 2G -drive {disk}",
        f"{orders.program} snapshot create {name}@first{orders.home_words}",
    ]
