"""Decides which automatic snapshots a schedule no longer keeps, from their times in UTC.

`daily = 7` keeps the newest snapshot of each of the last seven days that have one, and so on;
`last = 3` keeps the three newest. A snapshot stays if any rule keeps it. Newest means made last: a
clock that was wrong for a while gives odd times, but the snapshot made just now always stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Automatic:
    """An automatic snapshot. `spared`: it is protected or in use, and stays in any case."""

    name: str
    at: datetime
    spared: bool = False


def _by(form: str) -> Callable[[Automatic], str]:
    return lambda one: one.at.strftime(form)


RULES: dict[str, Callable[[Automatic], str]] = {
    "last": lambda one: one.name,
    "hourly": _by("%Y-%m-%dT%H"),
    "daily": _by("%Y-%m-%d"),
    "weekly": _by("%G-W%V"),
    "monthly": _by("%Y-%m"),
    "yearly": _by("%Y"),
}
"""By rule, the period of a snapshot; a rule keeps one snapshot a period. Weeks begin on Monday."""


def expired(snapshots: Sequence[Automatic], keep: Mapping[str, int]) -> list[str]:
    """Return the names of the snapshots to delete, in the order in which they were made.

    Args:
        snapshots: in the order in which they were made; names are unique.
        keep: how many periods each rule keeps, by its name in `RULES`; at least 1.
    """
    kept = {one.name for one in snapshots if one.spared}
    for rule, count in keep.items():
        seen: set[str] = set()
        for one in reversed(snapshots):
            period = RULES[rule](one)
            if period in seen:
                continue
            if len(seen) == count:
                break
            seen.add(period)
            kept.add(one.name)
    return [one.name for one in snapshots if one.name not in kept]
