"""Retention of automatic snapshots: properties of the decision, and examples."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.catalogue.retention import RULES, Automatic, expired

START = datetime(2030, 1, 1, tzinfo=UTC)
TIMES = st.datetimes(
    datetime(2029, 11, 1), datetime(2030, 3, 1), timezones=st.just(UTC)
) | st.integers(0, 300).map(lambda hours: START + timedelta(hours=hours))
KEEP = st.dictionaries(st.sampled_from(sorted(RULES)), st.integers(1, 8), min_size=1)


def made(times: list[datetime], spared: set[int] = frozenset()) -> list[Automatic]:  # type: ignore[assignment]
    return [Automatic(f"s{i}", at, i in spared) for i, at in enumerate(times)]


SNAPSHOTS = st.builds(made, st.lists(TIMES, max_size=60), st.sets(st.integers(0, 60), max_size=5))
"""In the order in which they were made; the clock may have jumped back and forth meanwhile."""


@given(SNAPSHOTS, KEEP)
def test_rules_keep_one_of_each_period_and_no_more(
    snapshots: list[Automatic], keep: Mapping[str, int]
) -> None:
    gone = set(expired(snapshots, keep))
    left = [one for one in snapshots if one.name not in gone]
    assert all(one in left for one in snapshots if one.spared)
    assert snapshots[-1:] == left[-1:], "the newest stays, whatever the clock said"
    assert expired(left, keep) == [], "and then no more goes"
    for rule, count in keep.items():
        newest = list(dict.fromkeys(RULES[rule](one) for one in reversed(snapshots)))[:count]
        assert set(newest) <= {RULES[rule](one) for one in left}, "each period keeps one"
    owed = sum(keep.values())
    assert sum(not one.spared for one in left) <= owed, "and no more than were asked for stay"


@given(SNAPSHOTS, KEEP, KEEP)
def test_an_additional_rule_never_deletes_a_snapshot(
    snapshots: list[Automatic], keep: Mapping[str, int], more: Mapping[str, int]
) -> None:
    both = {rule: max(keep.get(rule, 0), more.get(rule, 0)) for rule in {*keep, *more}}
    assert set(expired(snapshots, both)) <= set(expired(snapshots, keep))


@given(st.lists(st.integers(1, 30 * 60), min_size=1, max_size=200), KEEP)
def test_deleting_each_time_leaves_the_same_as_deleting_once(
    minutes: list[int], keep: Mapping[str, int]
) -> None:
    """While the clock goes forward, no snapshot that was deleted early would be kept later."""
    at, left, everything = START, [], []
    for number, step in enumerate(minutes):
        at += timedelta(minutes=step)
        one = Automatic(f"s{number}", at)
        left.append(one)
        everything.append(one)
        gone = set(expired(left, keep))
        left = [each for each in left if each.name not in gone]
    gone = set(expired(everything, keep))
    assert left == [each for each in everything if each.name not in gone]


def test_a_year_of_hourly_snapshots() -> None:
    keep = {"hourly": 24, "daily": 7, "weekly": 4, "monthly": 12}
    left: list[Automatic] = []
    for hour in range(365 * 24):
        left.append(Automatic(f"h{hour}", START + timedelta(hours=hour)))
        gone = set(expired(left, keep))
        left = [one for one in left if one.name not in gone]
    ages = [(left[-1].at - one.at) // timedelta(hours=1) for one in reversed(left)]
    assert ages[:24] == list(range(24))
    assert ages[24:30] == [24 * day for day in range(1, 7)]
    months = sorted({one.at.month for one in left})
    assert months == list(range(1, 13))
    assert len(left) < 24 + 7 + 4 + 12


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ({"last": 2}, ["d", "e"]),
        ({"hourly": 2}, ["c", "e"]),
        ({"daily": 2}, ["a", "e"]),
        ({"weekly": 2}, ["a", "e"]),
        ({"monthly": 5}, ["a", "e"]),
        ({"yearly": 1}, ["e"]),
        ({"daily": 1, "last": 2}, ["d", "e"]),
    ],
)
def test_examples_of_rules(keep: Mapping[str, int], left: list[str]) -> None:
    times = {
        "a": datetime(2030, 3, 31, 12, 0, tzinfo=UTC),  # a Sunday
        "b": datetime(2030, 4, 1, 9, 0, tzinfo=UTC),
        "c": datetime(2030, 4, 1, 9, 30, tzinfo=UTC),
        "d": datetime(2030, 4, 1, 10, 0, tzinfo=UTC),
        "e": datetime(2030, 4, 1, 10, 59, tzinfo=UTC),
    }
    gone = expired([Automatic(name, at) for name, at in times.items()], keep)
    assert [name for name in times if name not in gone] == left


def test_snapshots_of_a_wrong_future_do_not_push_out_the_newest() -> None:
    """A clock that was days ahead and was set right again harms nothing that is made since."""
    ahead = [Automatic(f"a{i}", START + timedelta(days=9, hours=i)) for i in range(48)]
    since = [Automatic(f"s{i}", START + timedelta(hours=i)) for i in range(6)]
    gone = expired([*ahead, *since], {"hourly": 24})
    assert not {one.name for one in since} & set(gone)
    assert len(gone) == 30
