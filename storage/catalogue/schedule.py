"""Schedules of automatic snapshots: of which volumes, how often, and which are kept.

Snapshots are due at round times: every hour at the full hour, every day at midnight, UTC. The time
of the last snapshot alone decides when the next one is due, whether or not the daemon ran in
between: one snapshot makes up for all that were missed. The wall clock gives the round time; a
monotonic clock shows that a period has passed even if the wall clock was set back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from storage.catalogue.names import LABELS_MAX, check_labels, check_name
from storage.catalogue.retention import RULES
from storage.errors import InvalidArgumentError
from storage.format.values import text, whole

EVERY_S_MIN = 60
EVERY_S_MAX = 366 * 86400
"""From a minute, the grain of a snapshot's name, to a year."""

KEEP_MAX = 10_000
"""For each rule; the catalogue with all snapshots is kept in memory and in each checkpoint."""

VOLUMES_MAX = 256
"""Names and patterns in one schedule."""

SCHEDULES_MAX = 1000

LATE = 1.1
"""After so many periods of the monotonic clock a snapshot is due whatever the wall clock says. Not
sooner: the clocks differ a little, and users expect snapshots at round times."""

_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Snapshots of the volumes that match one of `volumes` and carry all of `labels`.

    `volumes` are names, or patterns such as `db-*`; none means all. `keep` is as in
    `storage.catalogue.retention`.
    """

    every_s: int
    keep: Mapping[str, int]
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, volume: str, labels: Mapping[str, str]) -> bool:
        """Whether the schedule makes snapshots of a volume with these labels."""
        named = not self.volumes or any(fnmatchcase(volume, each) for each in self.volumes)
        return named and all(labels.get(key) == value for key, value in self.labels.items())

    def renamed(self, old: str, new: str) -> "Schedule":
        """The schedule after a volume was renamed."""
        volumes = tuple(new if each == old else each for each in self.volumes)
        return Schedule(self.every_s, self.keep, volumes, self.labels)

    # -- time

    def round_time(self, at: datetime) -> datetime:
        """The latest round time that is not after `at`."""
        every = timedelta(seconds=self.every_s)
        return _MONDAY + (at - _MONDAY) // every * every

    def is_due(self, now: datetime, last: datetime | None, elapsed_s: float) -> bool:
        """Whether to make a snapshot.

        Args:
            last: the time of the last snapshot that was made before `now`, or None.
            elapsed_s: seconds since then at least, by a monotonic clock.
        """
        if last is None or elapsed_s >= self.every_s * LATE:
            return True
        return self.round_time(now) > self.round_time(last)

    def next_time(self, now: datetime, last: datetime | None) -> datetime:
        """When the next snapshot is due by the wall clock; `now` if it is due already."""
        due = self.is_due(now, last, 0)
        return now if due else self.round_time(now) + timedelta(seconds=self.every_s)

    # -- as plain values

    def pack(self) -> dict[str, Any]:
        """Return plain values for msgpack."""
        return {
            "every": self.every_s, "keep": dict(self.keep), "volumes": list(self.volumes),
            "labels": dict(self.labels),
        }  # fmt: skip

    @classmethod
    def unpack(cls, stored: Mapping[str, Any]) -> "Schedule":
        """The inverse of `pack`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the values are no schedule.
        """
        keep = {text(rule): whole(count) for rule, count in stored["keep"].items()}
        if not keep.keys() <= RULES.keys():
            raise ValueError(f"unknown rules: {keep}")
        labels = {text(key): text(value) for key, value in stored["labels"].items()}
        volumes = tuple(text(each) for each in stored["volumes"])
        return cls(whole(stored["every"]), keep, volumes, labels)


def check_schedule(name: str, schedule: Schedule) -> Schedule:
    """Return the schedule that a user asks for.

    Raises:
        InvalidArgumentError: it is not acceptable; the message says which schedules are.
    """
    check_name(name, "schedule")
    if not EVERY_S_MIN <= schedule.every_s <= EVERY_S_MAX:
        raise InvalidArgumentError(
            f"a snapshot every {schedule.every_s} s is not possible: from a minute to a year is"
        )
    if not schedule.keep or not schedule.keep.keys() <= RULES.keys():
        raise InvalidArgumentError(
            f"say which snapshots to keep: one or more of {', '.join(RULES)}, each with a number"
        )
    if not all(1 <= count <= KEEP_MAX for count in schedule.keep.values()):
        raise InvalidArgumentError(f"how many to keep: a number from 1 to {KEEP_MAX}")
    if not schedule.volumes and not schedule.labels:
        raise InvalidArgumentError("name volumes, or labels that they carry")
    if len(schedule.volumes) > VOLUMES_MAX or len(schedule.labels) > LABELS_MAX:
        raise InvalidArgumentError(
            f"too many: a schedule has at most {VOLUMES_MAX} names and {LABELS_MAX} labels"
        )
    for volume in schedule.volumes:
        check_name(_without_wildcards(volume), "volume")
    check_labels(schedule.labels)
    if not all(schedule.labels.values()):
        raise InvalidArgumentError("a label needs a value that volumes carry")
    return schedule


def _without_wildcards(pattern: str) -> str:
    """Return the pattern with a letter in place of each wildcard character."""
    return "".join("x" if char in "*?[]!" else char for char in pattern)


def snapshot_name(at: datetime, taken: Collection[str]) -> str:
    """Return a name for an automatic snapshot: `auto-2026-11-24T1200Z`, with `-2`, `-3` and so on
    appended when that is in `taken`."""
    name = at.astimezone(UTC).strftime("auto-%Y-%m-%dT%H%MZ")
    number = 1
    found = name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
