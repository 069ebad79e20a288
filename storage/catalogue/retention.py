"""Which automatic snapshots a schedule no longer keeps. A pure decision, over times in UTC.

`daily = 7` keeps the newest snapshot of each of the last seven days that have one, and so on;
`last = 3` the three newest. What any rule keeps is kept. Newest means made last: a clock that was
wrong for a while gives odd times, and yet the snapshot made just now is never the one to go.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Automatic:
    """An automatic snapshot; a `spared` one is protected or in use, and stays in any case."""

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
"""What snapshots have in common of which a rule keeps one. Weeks begin on Monday."""


def expired(snapshots: Sequence[Automatic], keep: Mapping[str, int]) -> list[str]:
    """The names of those that go.

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
