"""Time to make a snapshot beyond sealing and flushing the open buffer, while fio writes.

A flush under full load takes as long as the buffers in memory take to be written, and varies as
much: the difference of two such medians, printed as `difference_ms` with its error, tells little.
So the other work of a snapshot is timed by itself: the call without the wait for its buffer, which
is the work of a flush, plus the application of its record once the record is durable.
"""

import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from admin.daemon.exports import PoolExports
from bench.figures import milliseconds, seconds_of, show
from nbd.server.listeners import listen_unix
from nbd.server.server import Server
from storage import pool as engine
from storage.catalogue.catalogue import Catalogue
from storage.log.buffer import WriteBuffer
from storage.log.intake import Intake
from storage.pool import Pool

SNAPSHOTS = 300
PAUSE_S = 0.02


async def measure_under_load(pool: Pool, volume: str, directory: Path) -> None:
    """Make snapshots of a volume that fio writes to through the NBD server, flushes in between."""
    socket = directory / "nbd.sock"
    server = Server(PoolExports(pool))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, [listen_unix(socket)])
        fio = await trio.lowlevel.open_process(
            ["fio", "--name=load", "--ioengine=nbd", f"--uri=nbd+unix:///{volume}?socket={socket}",
             "--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=600",
             "--refill_buffers", "--norandommap"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        await trio.sleep(3)
        snapshots, flushes, beyond = await _alternate(pool, volume)
        fio.terminate()
        await fio.wait()
        nursery.cancel_scope.cancel()
    difference = statistics.median(snapshots) - statistics.median(flushes)
    show(
        "snapshots created while fio writes", snapshots=len(pool.management.snapshots(volume)),
        repeats=SNAPSHOTS, flush_ms=milliseconds(flushes), snapshot_ms=milliseconds(snapshots),
        beyond_ms=milliseconds(beyond), beyond_worst_ms=round(max(beyond) * 1e3, 2),
        difference_ms=round(difference * 1e3, 2),
        difference_error_ms=round(math.hypot(_error(snapshots), _error(flushes)) * 1e3, 2),
    )  # fmt: skip


async def _alternate(pool: Pool, volume: str) -> tuple[list[float], list[float], list[float]]:
    snapshots, flushes, beyond = [], [], []
    waits: list[float] = []
    records: list[float] = []
    with (
        _waits_of_this_task(waits),
        _stopwatch(Catalogue, "apply", records),
        _stopwatch(engine, "follow", records),
    ):
        for i in range(SNAPSHOTS):
            await trio.sleep(PAUSE_S)
            flushes.append(await seconds_of(pool.flush))
            await trio.sleep(PAUSE_S)
            waits.clear()
            records.clear()
            took = await seconds_of(partial(pool.management.create_snapshot, volume, f"load{i}"))
            # A record is applied within the call and once durable. The first time counts twice
            # here, which errs on the safe side.
            beyond.append(took - sum(waits) + sum(records))
            snapshots.append(took)
            assert len(waits) == 1, "a snapshot waits for one buffer"
            assert len(records) >= 3, "its record is applied, and again once it is durable"
    return snapshots, flushes, beyond


@contextmanager
def _waits_of_this_task(laps: list[float]) -> Iterator[None]:
    """Note how long this task waits for buffers to become durable."""
    real, ours = Intake.wait, trio.lowlevel.current_task()

    async def timed(self: Intake, buffer: WriteBuffer) -> None:
        began = time.monotonic()
        try:
            await real(self, buffer)
        finally:
            if trio.lowlevel.current_task() is ours:
                laps.append(time.monotonic() - began)

    Intake.wait = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Intake.wait = real  # type: ignore[method-assign]


@contextmanager
def _stopwatch(owner: object, name: str, laps: list[float]) -> Iterator[None]:
    """Note how long each call of a function takes."""
    real: Callable[..., object] = getattr(owner, name)

    def timed(*arguments: object, **named: object) -> object:
        began = time.monotonic()
        try:
            return real(*arguments, **named)
        finally:
            laps.append(time.monotonic() - began)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, real)


def _error(seconds: list[float]) -> float:
    """Return a median's standard error: 1.25 times that of a mean, for normal distributions."""
    return 1.25 * statistics.stdev(seconds) / math.sqrt(len(seconds))
