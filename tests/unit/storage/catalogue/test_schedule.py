"""Schedules: due times, matching volumes, names of snapshots, and storage in the pool."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.schedule import LATE, Schedule, check_schedule, snapshot_name
from storage.errors import InvalidArgumentError, NotFoundError
from storage.pool import MemberDevice, Pool
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened

HOURLY = Schedule(3600, {"hourly": 24}, ("v",))
NOON = datetime(2030, 1, 2, 12, 0, tzinfo=UTC)
TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
EVERY = st.sampled_from([60, 900, 3600, 7 * 3600, 86400, 7 * 86400]) | st.integers(60, 10**7)


@given(EVERY, TIMES, TIMES, st.floats(0, 1))
def test_snapshots_are_due_at_round_times(
    every_s: int, now: datetime, last: datetime, part: float
) -> None:
    schedule = replace(HOURLY, every_s=every_s)
    every = timedelta(seconds=every_s)
    assert schedule.round_time(now) <= now < schedule.round_time(now) + every
    assert schedule.is_due(now, None, 0)
    assert schedule.is_due(now, now, LATE * every_s), "whatever the wall clock says"
    elapsed = part * every_s
    assert not schedule.is_due(now, now, elapsed)
    assert schedule.is_due(now + every, now, elapsed)
    last = min(last, now)
    due = schedule.next_time(now, last)
    assert now <= due <= now + every
    assert schedule.is_due(due, last, 0)
    if due > now:
        assert not schedule.is_due(due - timedelta(microseconds=1), last, 0)
    # One snapshot makes up for all missed ones: after it none is due before the next round time.
    assert schedule.next_time(now, now) == schedule.round_time(now) + every


def test_round_times_are_full_minutes_hours_days_and_mondays() -> None:
    at = datetime(2030, 1, 2, 12, 34, 56, tzinfo=UTC)  # a Wednesday
    for every_s, wanted in (
        (60, at.replace(second=0)),
        (900, at.replace(minute=30, second=0)),
        (3600, at.replace(minute=0, second=0)),
        (86400, at.replace(hour=0, minute=0, second=0)),
        (7 * 86400, datetime(2029, 12, 31, tzinfo=UTC)),  # a Monday
    ):
        assert replace(HOURLY, every_s=every_s).round_time(at) == wanted


def test_schedules_match_names_patterns_and_labels() -> None:
    both = Schedule(60, {"last": 1}, ("db-*", "web"), {"tier": "gold"})
    assert both.matches("db-1", {"tier": "gold", "x": "y"})
    assert not both.matches("db-1", {"tier": "silver"})
    assert not both.matches("mail", {"tier": "gold"})
    assert Schedule(60, {"last": 1}, (), {"tier": "gold"}).matches("any", {"tier": "gold"})
    assert Schedule(60, {"last": 1}, ("web",)).matches("web", {})
    assert both.renamed("web", "www").volumes == ("db-*", "www")


@given(
    EVERY,
    st.dictionaries(st.sampled_from(["last", "daily"]), st.integers(1, 99), min_size=1),
    st.lists(st.sampled_from(["a", "b*"]), max_size=2).map(tuple),
    st.dictionaries(st.sampled_from("kl"), st.text(min_size=1, max_size=5)),
)
def test_schedules_round_trip(
    every_s: int, keep: dict[str, int], volumes: tuple[str, ...], labels: dict[str, str]
) -> None:
    schedule = Schedule(every_s, keep, volumes, labels)
    made = Catalogue()
    operations.apply(made, {"op": "schedule", "name": "s", "spec": schedule.pack()})
    assert Catalogue.unpack(made.pack()).schedules == {"s": schedule}
    assert made.copy().schedules == {"s": schedule}


@pytest.mark.parametrize(
    ("name", "schedule", "message"),
    [
        ("a b", HOURLY, "bad schedule name"),
        ("s", replace(HOURLY, every_s=59), "from a minute to a year"),
        ("s", replace(HOURLY, every_s=1 << 40), "from a minute to a year"),
        ("s", replace(HOURLY, keep={}), "which snapshots to keep"),
        ("s", replace(HOURLY, keep={"often": 3}), "which snapshots to keep"),
        ("s", replace(HOURLY, keep={"last": 0}), "a number from 1"),
        ("s", replace(HOURLY, keep={"last": 10**6}), "a number from 1"),
        ("s", replace(HOURLY, volumes=()), "name volumes, or labels"),
        ("s", replace(HOURLY, volumes=("a/b",)), "bad volume name"),
        ("s", replace(HOURLY, volumes=("v@s",)), "bad volume name"),
        ("s", replace(HOURLY, volumes=("v",) * 300), "too many"),
        ("s", replace(HOURLY, labels={"a b": "c"}), "bad label"),
        ("s", replace(HOURLY, labels={"a": ""}), "needs a value"),
    ],
)
def test_unacceptable_schedules_are_refused(name: str, schedule: Schedule, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_schedule(name, schedule)


def test_names_of_snapshots_do_not_repeat() -> None:
    assert snapshot_name(NOON, ()) == "auto-2030-01-02T1200Z"
    taken = {"auto-2030-01-02T1200Z", "auto-2030-01-02T1200Z-2"}
    assert snapshot_name(NOON, taken) == "auto-2030-01-02T1200Z-3"


# -- in a pool


@pytest.fixture
async def members() -> list[MemberDevice]:
    return await new_members()


async def test_schedules_outlive_the_daemon(members: list[MemberDevice]) -> None:
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.set_schedule("hourly", HOURLY)
        await pool.checkpoint()
        await pool.management.set_schedule("daily", replace(HOURLY, every_s=86400))
        await pool.management.rename_volume("v", "w")
    async with opened(members) as pool:
        assert {name: s.volumes for name, s in pool.management.schedules().items()} == {
            "hourly": ("w",), "daily": ("w",),
        }  # fmt: skip
        await pool.management.remove_schedule("hourly")
        with pytest.raises(NotFoundError, match="no schedule is called 'hourly'"):
            await pool.management.remove_schedule("hourly")
        with pytest.raises(InvalidArgumentError):
            await pool.management.set_schedule("daily", replace(HOURLY, keep={}))
    async with opened(members) as pool:
        assert [*pool.management.schedules()] == ["daily"]
    await assert_clean(members)


def made_by(pool: Pool) -> dict[str, str]:
    return {f"{one.volume}@{one.name}": one.schedule for one in pool.management.snapshots()}


async def test_automatic_snapshots_name_their_schedule_until_renamed(
    members: list[MemberDevice],
) -> None:
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.create_volume("w", MIB)
        commits = pool.log.commits
        await pool.management.create_snapshots(["v", "w"], "auto-1", schedule="hourly")
        assert pool.log.commits == commits + 1, "one record"
        await pool.management.create_snapshots(["v"], "auto-2", schedule="hourly")
        await pool.management.create_snapshots(["v"], "mine")
        await pool.management.rename_snapshot("v", "auto-2", "kept")
    for _ in range(2):
        async with opened(members) as pool:
            assert made_by(pool) == {
                "v@auto-1": "hourly", "v@kept": "", "v@mine": "", "w@auto-1": "hourly",
            }  # fmt: skip
            await pool.checkpoint()
    await assert_clean(members)
