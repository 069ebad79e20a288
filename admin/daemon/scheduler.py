"""Makes automatic snapshots when they are due, and deletes those that are no longer kept.

Schedules come from the configuration, and from `cenote schedule set`, which the pool keeps. The
snapshots of all volumes of a schedule are made at one moment. A schedule deletes only snapshots
that carry its name, and none that is protected, has clients, or was cloned.

A failure is logged, shown by `cenote schedule list`, and tried again. After a failure the content
of the pool decides whether the snapshots were made, not the error.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import trio

from admin.api.values import ScheduleInfo
from blockdev.errors import DeviceError
from storage.catalogue.retention import Automatic, expired
from storage.catalogue.schedule import Schedule, check_schedule, snapshot_name
from storage.errors import ExistsError, InUseError, NotFoundError
from storage.info import SnapshotInfo
from storage.volumes.management import Management

_log = logging.getLogger("cenote.schedule")

LOOK_INTERVAL_S = 5.0
"""Clocks may jump, so the scheduler looks at the wall clock and does not sleep until a time."""
RETRY_S = 15.0
RETRY_S_MAX = 600.0
"""The wait doubles after each failure, up to this; a pool may stay full for days."""


@dataclass
class _Progress:
    """The runs of one schedule since the daemon started."""

    ran_at: float
    """Time of the last run by trio's clock; before the first, when the schedule was first met."""
    times: list[datetime] = field(default_factory=list)
    """The times of its snapshots that exist."""
    retry_at: float | None = None
    failures: int = 0
    error: str | None = None

    def last(self, now: datetime) -> datetime | None:
        """The time of the last snapshot, without times after `now`, which a wrong clock gave."""
        return max((at for at in self.times if at <= now), default=None)


class Scheduler:
    """The schedules of one pool.

    Args:
        configured: schedules of the configuration; they cannot be changed by command.
        wall_clock: UTC.
    """

    def __init__(
        self,
        management: Management,
        configured: Mapping[str, Schedule],
        wall_clock: Callable[[], datetime],
    ) -> None:
        self._management = management
        self._configured = dict(configured)
        self._now = wall_clock
        self._progress: dict[str, _Progress] = {}
        self._lock = trio.Lock()
        """One run at a time."""

    # -- listing

    def schedules(self) -> dict[str, Schedule]:
        """All schedules by name; a schedule of the configuration hides one of the same name that
        was set by command."""
        return {**self._management.schedules(), **self._configured}

    def infos(self) -> list[ScheduleInfo]:
        """All schedules, with the state of their runs."""
        return [self.info(name) for name in sorted(self.schedules())]

    def info(self, name: str) -> ScheduleInfo:
        """One schedule, with the state of its runs. Raises NotFoundError."""
        schedule, progress, now = self._find(name), self._of(name), self._now()
        last, volumes = progress.last(now), self._volumes(schedule)
        due = schedule.next_time(now, last).isoformat(timespec="seconds") if volumes else None
        return ScheduleInfo(
            name=name,
            source="configuration" if name in self._configured else "command",
            volumes=list(schedule.volumes),
            labels=dict(schedule.labels),
            every_s=schedule.every_s,
            keep=dict(schedule.keep),
            matches=volumes,
            snapshots=len(progress.times),
            last_run=last.isoformat(timespec="seconds") if last else None,
            next_run=due,
            last_error=progress.error,
        )

    def _find(self, name: str) -> Schedule:
        schedule = self.schedules().get(name)
        if schedule is None:
            raise NotFoundError(f"no schedule is called {name!r}")
        return schedule

    def _volumes(self, schedule: Schedule) -> list[str]:
        return [
            one.name for one in self._management.volumes() if schedule.matches(one.name, one.labels)
        ]

    def _of(self, name: str) -> _Progress:
        progress = self._progress.get(name)
        if progress is None:
            progress = self._progress[name] = _Progress(trio.current_time())
            progress.times = self._times(name)
        return progress

    def _times(self, name: str) -> list[datetime]:
        made = (_time_of(one) for one in self._management.snapshots() if one.schedule == name)
        return [at for at in made if at is not None]

    # -- changing

    async def set(self, name: str, schedule: Schedule) -> ScheduleInfo:
        """Set a schedule, or replace the one of that name.

        Its first snapshot is due at once, unless one was made since the last round time.

        Raises:
            InvalidArgumentError: a value of the schedule is not acceptable.
            ExistsError: the configuration has a schedule of that name.
        """
        self._refuse_configured(name)
        await self._management.set_schedule(name, check_schedule(name, schedule))
        self._progress.pop(name, None)
        return self.info(name)

    async def remove(self, name: str) -> None:
        """Remove a schedule; its snapshots stay.

        Raises:
            NotFoundError: there is no such schedule.
            ExistsError: the schedule is in the configuration.
        """
        self._refuse_configured(name)
        await self._management.remove_schedule(name)
        self._progress.pop(name, None)

    def _refuse_configured(self, name: str) -> None:
        if name in self._configured:
            raise ExistsError(
                f"schedule {name} is set in the configuration: change it there, and restart"
            )

    # -- running

    async def run(self) -> None:
        """Make snapshots as they become due, for ever."""
        for name in self._configured.keys() & self._management.schedules().keys():
            _log.warning("schedule %s: the configuration's counts, not the one that was set", name)
        while True:
            for name in sorted(self.schedules()):
                schedule = self.schedules().get(name)
                if schedule is not None and self._is_due(name, schedule):
                    await self._attempt(name, schedule)
            await trio.sleep(LOOK_INTERVAL_S)

    async def run_now(self, name: str) -> ScheduleInfo:
        """Make the snapshots now, due or not, and delete those that are no longer kept.

        Raises:
            NotFoundError: there is no such schedule, or no volume matches it.
            DeviceError: the pool failed; the scheduler tries again as after any failure.
        """
        schedule = self._find(name)
        if not self._volumes(schedule):
            raise NotFoundError(f"schedule {name} is about no volume that there is")
        error = await self._attempt(name, schedule, at_once=True)
        if error is not None:
            raise error
        return self.info(name)

    def _is_due(self, name: str, schedule: Schedule) -> bool:
        progress = self._of(name)
        if progress.retry_at is not None:
            return trio.current_time() >= progress.retry_at
        return self._wants_snapshot(schedule, progress) and bool(self._volumes(schedule))

    def _wants_snapshot(self, schedule: Schedule, progress: _Progress) -> bool:
        now = self._now()
        elapsed_s = trio.current_time() - progress.ran_at
        return schedule.is_due(now, progress.last(now), elapsed_s)

    async def _attempt(
        self, name: str, schedule: Schedule, *, at_once: bool = False
    ) -> DeviceError | None:
        """Make the snapshots if they are due, then delete old ones; returns the error, if any."""
        async with self._lock:
            progress, error = self._of(name), None
            if at_once or self._wants_snapshot(schedule, progress):
                error = await self._make(name, schedule, progress)
            # Also after an error: on a full pool, deleting may make the room that is missing.
            error = await self._clear_up(name, schedule) or error
            progress.times = self._times(name)
            if error is None:
                progress.retry_at, progress.failures, progress.error = None, 0, None
                return None
            wait_s = min(RETRY_S * 2**progress.failures, RETRY_S_MAX)
            progress.retry_at = trio.current_time() + wait_s
            progress.failures += 1
            progress.error = str(error)
            _log.warning("schedule %s failed, again in %d s: %s", name, wait_s, error)
            return error

    async def _make(self, name: str, schedule: Schedule, progress: _Progress) -> DeviceError | None:
        volumes = self._volumes(schedule)
        if not volumes:
            return None
        taken = {one.name for one in self._management.snapshots() if one.volume in volumes}
        snapshot = snapshot_name(self._now(), taken)
        try:
            await self._management.create_snapshots(volumes, snapshot, schedule=name)
        except DeviceError as error:
            if not any(self._is_there(volume, snapshot) for volume in volumes):
                return error
            # The snapshots exist, though not durably yet for lack of room: do not make them again.
            progress.ran_at = trio.current_time()
            return error
        progress.ran_at = trio.current_time()
        _log.info("schedule %s: made %s of %s", name, snapshot, ", ".join(volumes))
        return None

    def _is_there(self, volume: str, snapshot: str) -> bool:
        return any(
            (one.volume, one.name) == (volume, snapshot) for one in self._management.snapshots()
        )

    async def _clear_up(self, name: str, schedule: Schedule) -> DeviceError | None:
        """Delete snapshots that the schedule no longer keeps, of the volumes that match it."""
        by_volume: dict[str, list[Automatic]] = {}
        volumes = set(self._volumes(schedule))
        for one in self._management.snapshots():
            at = _time_of(one)
            if one.schedule == name and one.volume in volumes and at is not None:
                spared = one.protected or one.clones > 0
                by_volume.setdefault(one.volume, []).append(Automatic(one.name, at, spared))
        for volume, made in by_volume.items():
            for snapshot in expired(made, schedule.keep):
                try:
                    await self._management.delete_snapshot(volume, snapshot)
                except (InUseError, NotFoundError) as error:
                    _log.debug("schedule %s: %s@%s stays: %s", name, volume, snapshot, error)
                except DeviceError as error:
                    return error
                else:
                    _log.info("schedule %s: deleted %s@%s", name, volume, snapshot)
        return None


def _time_of(snapshot: SnapshotInfo) -> datetime | None:
    """The time of a snapshot; None when it is not known, and then the snapshot is not deleted."""
    try:
        at = datetime.fromisoformat(snapshot.created)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
