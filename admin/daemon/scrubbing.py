"""Runs the scrubs of a pool when they are due or a command asks for one, at a limited rate.

The progress and the findings of a scrub are saved now and then, so that it continues after a
restart. An error that interrupts a scrub is logged and shown by `cenote scrub status`, and the
scrub is tried again.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import trio

from admin.api.scrub_status import Keeper, ScrubInfo, ScrubRecord, ScrubRun, ScrubState
from admin.config.scrub import ScrubConfig
from admin.sizes import human
from blockdev.errors import DeviceError
from storage.throttle import Limits, Throttle
from storage.verify.scrub_pass import ScrubPass, Stage

_log = logging.getLogger("cenote.scrub")

LOOK_INTERVAL_S = 60.0
"""Time between two looks at the clock; scrubs are days apart."""
SAVE_INTERVAL_S = 30.0
"""After a crash, the work of so many seconds is done again."""
RETRY_S = 30.0
RETRY_S_MAX = 3600.0


class ScrubEngine(Protocol):
    """Reads and repairs the pool; `storage.verify.scrub.Scrubber` is one."""

    def new_pass(self) -> ScrubPass:
        """A new pass over the present content of the pool."""
        ...

    async def run(self, scrub: ScrubPass, throttle: Throttle) -> None:
        """Continue a pass to its end."""
        ...

    def total_bytes(self, scrub: ScrubPass) -> int:
        """An estimate of the bytes that the pass reads in all."""
        ...


class Scrubbing:
    """The scrubs of one pool.

    Args:
        wall_clock: UTC.
    """

    def __init__(
        self, pool: UUID, engine: ScrubEngine, config: ScrubConfig, keeper: Keeper,
        wall_clock: Callable[[], datetime],
    ) -> None:  # fmt: skip
        self._engine = engine
        self._config = config
        self._keeper = keeper
        self._now = wall_clock
        self._began = trio.current_time()
        kept = keeper.load()
        if kept is None or kept.pool != pool:
            kept = ScrubRecord(pool, self._stamp())
        self._record = kept
        self._throttle = Throttle(Limits())
        self._apply_rate()
        self._changed = trio.Event()
        self._scope: trio.CancelScope | None = None
        """Cancels the run under way."""
        self._ended = trio.Event()
        self._error: str | None = None
        self._saving = trio.Lock()

    def _stamp(self) -> str:
        return self._now().isoformat(timespec="seconds")

    # -- state

    def info(self) -> ScrubInfo:
        """The current or last scrub, and when the next one is due."""
        current, due = self._record.current, self._due()
        return ScrubInfo(
            every_s=self._config.every_s,
            rate_bytes=self._rate(),
            next_run=due.isoformat(timespec="seconds") if due else None,
            total_bytes=self._engine.total_bytes(current.result) if current else 0,
            last_error=self._error,
            current=current,
            previous=self._record.previous,
        )

    def _rate(self) -> int:
        current = self._record.current
        if current is None or current.rate_bytes is None or current.state is ScrubState.DONE:
            return self._config.rate_bytes
        return current.rate_bytes

    def _apply_rate(self) -> None:
        # Without bursts: a scrub that fell behind its rate must not catch up at full speed.
        self._throttle.change(Limits(bytes_per_s=self._rate(), burst_s=0.0))

    @property
    def _is_running(self) -> bool:
        current = self._record.current
        return current is not None and current.state is ScrubState.RUNNING

    def _due(self) -> datetime | None:
        """When the next scrub starts by itself; None while one runs, and when scrubs are off."""
        if not self._config.every_s or self._is_running:
            return None
        current = self._record.current
        last = self._record.since if current is None else current.ended or current.started
        return datetime.fromisoformat(last) + timedelta(seconds=self._config.every_s)

    def _is_due(self) -> bool:
        due = self._due()
        if due is None:
            return False
        every = timedelta(seconds=self._config.every_s)
        if due - self._now() > every:  # the last scrub is in the future: a clock was or is wrong
            return trio.current_time() - self._began >= self._config.every_s
        return self._now() >= due

    # -- commands

    async def start(self, rate_bytes: int | None = None, *, fresh: bool = False) -> ScrubInfo:
        """Begin a scrub, or continue the one that runs or was stopped, unless `fresh`.

        `rate_bytes`, 0 for no limit, counts from now on to the end of the scrub. With None a scrub
        keeps its rate, and a new one has that of the configuration.
        """
        current = self._record.current
        if current is not None and current.state is not ScrubState.DONE and not fresh:
            wanted = current.rate_bytes if rate_bytes is None else rate_bytes
            current = replace(current, state=ScrubState.RUNNING, ended=None, rate_bytes=wanted)
            self._record = replace(self._record, current=current)
        else:
            await self._halt()
            self._begin(rate_bytes)
        self._apply_rate()
        await self._save()
        self._changed.set()
        return self.info()

    async def stop(self) -> ScrubInfo:
        """Stop the scrub that runs, if any; `start` continues it."""
        if await self._halt():
            await self._save()
        return self.info()

    def _begin(self, rate_bytes: int | None) -> None:
        done, result = self._record.current, self._engine.new_pass()
        previous = self._record.previous
        if done is not None and done.state is ScrubState.DONE:
            previous = done
        run = ScrubRun(ScrubState.RUNNING, self._stamp(), None, rate_bytes, result)
        self._record = replace(self._record, current=run, previous=previous)
        self._error = None

    def _end(self, state: ScrubState) -> None:
        assert self._record.current is not None
        run = replace(self._record.current, state=state, ended=self._stamp())
        self._record = replace(self._record, current=run)
        self._error = None

    async def _halt(self) -> bool:
        """Stop the scrub that runs; False when none does."""
        current = self._record.current
        if current is None or not self._is_running:
            return False
        self._end(ScrubState.STOPPED)
        if self._scope is not None:
            self._scope.cancel()
            await self._ended.wait()
        _log.info("scrub stopped: %s", summary(current.result))
        return True

    # -- in the background

    async def run(self) -> None:
        """Scrub for ever, when a scrub is due or asked for. Saves the progress on cancellation."""
        await self._save()
        failures = 0
        while True:
            if not self._is_running and self._is_due():
                self._begin(None)
                self._apply_rate()
            wait_s = LOOK_INTERVAL_S
            if self._is_running:
                failures = failures + 1 if not await self._run_once() else 0
                wait_s = min(RETRY_S * 2 ** max(failures - 1, 0), RETRY_S_MAX)
                if not failures:
                    continue
            self._changed = trio.Event()
            with trio.move_on_after(wait_s):
                await self._changed.wait()

    async def _run_once(self) -> bool:
        """Continue the current scrub; False when it has to be tried again."""
        run = self._record.current
        assert run is not None
        self._ended, self._error = trio.Event(), None
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._save_often)
                    _log.info("scrub %s", "goes on" if run.result.read_bytes else "begins")
                    await self._engine.run(run.result, self._throttle)
                    nursery.cancel_scope.cancel()
        except* DeviceError as errors:
            error = errors.exceptions[0]
            self._error = str(error)
            _log.error("scrub is interrupted: %s", error)
        finally:
            self._scope = None
            self._ended.set()
            with trio.CancelScope(shield=True):
                await self._finish(run)
        return self._error is None

    async def _finish(self, run: ScrubRun) -> None:
        current = self._record.current
        if current is not None and current.result is run.result and _is_done(run):
            self._end(ScrubState.DONE)
            level = logging.ERROR if run.result.lost or run.result.unrepaired else logging.INFO
            _log.log(level, "scrub is done: %s", summary(run.result))
        await self._save()

    async def _save_often(self) -> None:
        while True:
            await trio.sleep(SAVE_INTERVAL_S)
            await self._save()

    async def _save(self) -> None:
        async with self._saving:
            record = self._record
            if record.current is not None:  # the engine changes it while it is saved
                result = record.current.result
                copied = replace(
                    result, findings=list(result.findings), skipped=list(result.skipped),
                    gaps=list(result.gaps),
                )  # fmt: skip
                record = replace(record, current=replace(record.current, result=copied))
            try:
                await self._keeper.save(record)
            except OSError as error:
                _log.error("cannot save how far the scrub is: %s", error)


def _is_done(run: ScrubRun) -> bool:
    return run.result.stage is Stage.DONE


def summary(result: ScrubPass) -> str:
    """The bytes read and the findings of a pass, in one line."""
    rate = f", {human(int(result.read_bytes / result.seconds))}/s" if result.seconds >= 1 else ""
    return (
        f"{human(result.read_bytes)} read in {result.seconds:.0f} s{rate}; "
        f"found={result.found} repaired={result.repaired} unrepaired={result.unrepaired} "
        f"lost={result.lost} harmless={result.harmless}"
        + (f" not_read={'; '.join(result.skipped)}" if result.skipped else "")
    )
