"""Automatic snapshots on a mock clock: when they are made, and which are deleted."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock as Mock

from admin.daemon import scheduler as scheduler_module
from admin.daemon.scheduler import LOOK_INTERVAL_S, RETRY_S_MAX, Scheduler
from blockdev.errors import NoSpaceError
from storage.catalogue.schedule import LATE, Schedule
from storage.cleaning import reclaim
from storage.environment import Environment
from storage.errors import ExistsError, InvalidArgumentError, NotFoundError
from storage.pool import MemberDevice, Pool, PoolSettings, open_pool
from tests.unit.admin.fake_pool import FakePool
from tests.unit.storage.pools import MIB, assert_clean, new_members, read, write

HOUR = 3600.0
DAY = 24 * HOUR
HOURLY = Schedule(3600, {"hourly": 3}, ("v",))
QUIET = PoolSettings(flush_interval_s=600, checkpoint_interval_s=1e9)
"""Few wake-ups, so that a day of the mock clock passes quickly."""


class WallClock:
    """Advances with trio's clock, and can be set."""

    def __init__(self, mock: Mock) -> None:
        self._zero = datetime(2030, 1, 2, 11, 59, 30, tzinfo=UTC)
        self._mock = mock

    def __call__(self) -> datetime:
        return self._zero + timedelta(seconds=self._mock.current_time())

    def set(self, seconds: float) -> None:
        self._zero += timedelta(seconds=seconds)


@pytest.fixture
def clock(autojump_clock: Mock, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """A test that uses this names `autojump_clock` too, so that trio runs on that clock."""
    monkeypatch.setattr(reclaim, "LOOK_EVERY_S", 60.0)  # hours have many fifths of a second
    return WallClock(autojump_clock)


@pytest.fixture
def fake(clock: WallClock) -> FakePool:
    pool = FakePool()
    pool.now = clock  # type: ignore[assignment]
    return pool


@asynccontextmanager
async def running(scheduler: Scheduler) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        await trio.lowlevel.checkpoint()
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened(members: list[MemberDevice], clock: WallClock) -> AsyncIterator[Pool]:
    env = Environment(wall_clock=clock)
    async with open_pool(members, settings=QUIET, env=env) as pool:
        yield pool


def names(pool: Pool | FakePool, volume: str = "v") -> list[str]:
    return [one.name for one in pool.management.snapshots(volume)]


# -- on a pool


async def test_hourly_snapshots_of_several_volumes(autojump_clock: Mock, clock: WallClock) -> None:
    """Goal: each run is one commit of snapshots of all volumes, and old snapshots are deleted."""
    members = await new_members()
    async with opened(members, clock) as pool:
        scheduler = Scheduler(pool.management, {}, clock)
        for volume in ("db-1", "db-2", "other"):
            await pool.management.create_volume(volume, MIB)
        await scheduler.set("dbs", Schedule(3600, {"hourly": 3}, ("db-*",)))
        commits = pool.log.commits
        async with running(scheduler):
            await trio.sleep(10)
            assert names(pool, "db-1") == names(pool, "db-2") == ["auto-2030-01-02T1159Z"]
            assert pool.log.commits == commits + 1
            for hour in range(6):
                for volume in ("db-1", "db-2"):
                    await write(pool, volume, 0, bytes([hour]) * 4096)
                await trio.sleep(HOUR)
        assert names(pool, "db-1") == names(pool, "db-2") == [
            "auto-2030-01-02T1500Z", "auto-2030-01-02T1600Z", "auto-2030-01-02T1700Z",
        ]  # fmt: skip
        assert names(pool, "other") == []
        [info] = scheduler.infos()
        assert info.last_run == "2030-01-02T17:00:00+00:00"
        assert info.next_run == "2030-01-02T18:00:00+00:00"
        assert (info.matches, info.snapshots, info.last_error) == (["db-1", "db-2"], 6, None)
        for name in names(pool, "db-1"):
            first = await read(pool, f"db-1@{name}", 0, 4096)
            assert first == await read(pool, f"db-2@{name}", 0, 4096)
    await assert_clean(members)


async def test_one_snapshot_makes_up_for_all_that_were_missed(
    autojump_clock: Mock, clock: WallClock
) -> None:
    members = await new_members()
    async with opened(members, clock) as pool:
        await pool.management.create_volume("v", MIB)
        scheduler = Scheduler(pool.management, {}, clock)
        await scheduler.set("h", replace(HOURLY, keep={"last": 99}))
        async with running(scheduler):
            await trio.sleep(2 * HOUR)
        assert len(names(pool)) == 3
    await trio.sleep(3 * DAY + 100)
    async with opened(members, clock) as pool:
        async with running(Scheduler(pool.management, {}, clock)):
            await trio.sleep(20)
            assert len(names(pool)) == 4
            assert names(pool)[-1] == "auto-2030-01-05T1401Z"
            await trio.sleep(HOUR)
        assert names(pool)[4:] == ["auto-2030-01-05T1500Z"]
    async with opened(members, clock) as pool:  # right after the last stop: no snapshot was missed
        async with running(Scheduler(pool.management, {}, clock)):
            await trio.sleep(60)
        assert len(names(pool)) == 5


async def test_a_schedule_deletes_only_its_own_snapshots(
    autojump_clock: Mock, clock: WallClock
) -> None:
    """Goal: and none of them that is protected, in use, cloned or renamed."""
    members = await new_members()
    async with opened(members, clock) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.create_snapshot("v", "auto-2029-01-01T0000Z")  # made by hand
        scheduler = Scheduler(pool.management, {}, clock)
        await scheduler.set("h", replace(HOURLY, keep={"last": 1}))
        await scheduler.set("other", replace(HOURLY, every_s=7200, keep={"last": 99}))
        made: list[str] = []
        for kind in ("protected", "open", "cloned", "renamed", "none"):
            await scheduler.run_now("h")
            made.append(names(pool)[-1])
            if kind == "protected":
                await pool.management.note(f"v@{made[-1]}", {"protected": True})
            elif kind == "open":
                device = pool.open_export(f"v@{made[-1]}")
            elif kind == "cloned":
                await pool.management.clone("v", made[-1], "c")
                # Also a clone with a snapshot, whose head is no child of the cloned snapshot.
                await pool.management.create_snapshot("c", "s")
            elif kind == "renamed":
                await pool.management.rename_snapshot("v", made[-1], "kept")
            await trio.sleep(60)
        await scheduler.run_now("other")
        await scheduler.run_now("h")
        left = set(names(pool))
        assert "auto-2029-01-01T0000Z" in left
        assert {made[0], made[1], made[2], "kept"} <= left
        assert made[4] not in left
        assert [one.schedule for one in pool.management.snapshots("v")].count("other") == 1
        # Snapshots that are no longer protected, in use or cloned are deleted like others.
        await device.close()
        await pool.management.note(f"v@{made[0]}", {"protected": False})
        await pool.management.delete_volume("c", snapshots=True)
        await scheduler.run_now("h")
        assert {"auto-2029-01-01T0000Z", "kept"} < set(names(pool))
        assert [one.schedule for one in pool.management.snapshots("v")].count("h") == 1
    await assert_clean(members)


# -- time


async def test_a_clock_set_back_delays_a_snapshot_by_a_period_at_most(
    autojump_clock: Mock, clock: WallClock, fake: FakePool
) -> None:
    """Goal: snapshots with times in a wrong future neither stop new ones nor replace them."""
    await fake.create_volume("v", MIB)
    scheduler = Scheduler(fake, {}, clock)
    await scheduler.set("h", replace(HOURLY, keep={"hourly": 8}))
    async with running(scheduler):
        clock.set(40 * DAY)
        await trio.sleep(10 * HOUR)
        clock.set(-40 * DAY)
        before = set(names(fake))
        await trio.sleep(10 * HOUR)
        since = [name for name in names(fake) if name not in before]
        assert len(since) == 8
        assert since[-1].startswith("auto-2030-01-03T07")
    async with running(Scheduler(fake, {}, clock)):
        await trio.sleep(2 * HOUR)
    assert names(fake)[-1].startswith("auto-2030-01-03T09")


async def test_a_clock_set_forward_makes_one_snapshot(
    autojump_clock: Mock, clock: WallClock, fake: FakePool
) -> None:
    await fake.create_volume("v", MIB)
    scheduler = Scheduler(fake, {}, clock)
    await scheduler.set("h", replace(HOURLY, keep={"last": 999}))
    async with running(scheduler):
        await trio.sleep(60)
        count = len(names(fake))
        clock.set(400 * DAY)
        await trio.sleep(60)
        assert len(names(fake)) == count + 1


@pytest.mark.parametrize("seed", range(8))
async def test_snapshots_with_a_random_clock_and_random_stops(
    seed: int, autojump_clock: Mock, clock: WallClock, fake: FakePool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Goal: while the daemon runs, each period has a snapshot; unless the clock was set, each round
    time has one at most; and the newest is never deleted.

    Method: set the clock and stop the daemon at random for weeks, and compare with the true time.
    """
    monkeypatch.setattr(scheduler_module, "LOOK_INTERVAL_S", 60.0)
    coin = random.Random(seed)
    await fake.create_volume("v", MIB)
    await fake.set_schedule("h", replace(HOURLY, keep={"hourly": 4, "daily": 3, "last": 2}))
    made: list[tuple[float, datetime]] = []
    create = fake.create_snapshots

    async def noting(volumes: Sequence[str], snapshot: str, *, schedule: str = "") -> None:
        made.append((trio.current_time(), clock()))
        await create(volumes, snapshot, schedule=schedule)

    fake.create_snapshots = noting  # type: ignore[assignment, method-assign]
    settings = [trio.current_time()]
    for _ in range(25):
        started = trio.current_time()
        async with running(Scheduler(fake, {}, clock)):
            for _ in range(coin.randrange(4)):
                await trio.sleep(coin.uniform(1, 8 * HOUR))
                newest = made[-1][0] if made else started
                assert trio.current_time() - max(newest, started) <= LATE * HOUR + 61
                assert names(fake)[-1].startswith(f"auto-{made[-1][1]:%Y-%m-%dT%H%MZ}")
                if coin.random() < 0.4:
                    clock.set(coin.choice([-1, 1]) * 10 ** coin.uniform(0, 7))
                    settings.append(trio.current_time())
        if coin.random() < 0.5:
            await trio.sleep(coin.uniform(1, 2 * DAY))
    for (at, wall), (next_at, next_wall) in pairwise(made):
        if not any(at <= setting <= next_at for setting in settings):
            assert (
                HOURLY.round_time(next_wall) > HOURLY.round_time(wall)
                or next_at - at >= LATE * HOUR
            )
    assert len(names(fake)) <= 4 + 3 + 2


# -- failures


async def test_a_full_pool_is_reported_and_tried_again(
    autojump_clock: Mock, clock: WallClock, fake: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    await fake.create_volume("v", MIB)
    scheduler = Scheduler(fake, {}, clock)
    await scheduler.set("h", HOURLY)
    async with running(scheduler):
        await trio.sleep(HOUR)
        made = names(fake)
        fake.raises = NoSpaceError("the pool is full")
        await trio.sleep(5 * HOUR)
        assert names(fake) == made
        [info] = scheduler.infos()
        assert info.last_error == "the pool is full"
        assert len(caplog.records) < 5 * HOUR / RETRY_S_MAX + 10
        fake.raises = None
        await trio.sleep(RETRY_S_MAX + LOOK_INTERVAL_S)
        assert len(names(fake)) == len(made) + 1, "made up for once"
        assert scheduler.infos()[0].last_error is None
    assert all(record.levelname == "WARNING" for record in caplog.records)
    caplog.clear()


async def test_a_snapshot_that_only_waits_for_room_is_not_made_twice(
    autojump_clock: Mock, clock: WallClock, fake: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """A pool without room for the commit has made the snapshot, and logs it once there is room."""
    await fake.create_volume("v", MIB)
    create = fake.create_snapshots

    async def late(*words: object, **options: object) -> None:
        await create(*words, **options)  # type: ignore[arg-type]
        raise NoSpaceError("no room to log it yet")

    fake.create_snapshots = late  # type: ignore[assignment, method-assign]
    scheduler = Scheduler(fake, {}, clock)
    await scheduler.set("h", HOURLY)
    async with running(scheduler):
        await trio.sleep(10)
        assert len(names(fake)) == 1
        assert scheduler.infos()[0].last_error == "no room to log it yet"
        fake.create_snapshots = create  # type: ignore[method-assign]
        await trio.sleep(19)
        assert len(names(fake)) == 1
        await trio.sleep(HOUR / 2)
        assert len(names(fake)) == 2, "the full hour came, and no more"
        assert scheduler.infos()[0].last_error is None


async def test_a_failed_deletion_is_tried_again_without_another_snapshot(
    autojump_clock: Mock, clock: WallClock, fake: FakePool
) -> None:
    await fake.create_volume("v", MIB)
    scheduler = Scheduler(fake, {}, clock)
    await scheduler.set("h", replace(HOURLY, keep={"last": 1}))
    await scheduler.run_now("h")
    delete = fake.delete_snapshot

    async def failing(volume: str, snapshot: str) -> None:
        raise NoSpaceError("no room to log it")

    fake.delete_snapshot = failing  # type: ignore[method-assign]
    with pytest.raises(NoSpaceError):
        await scheduler.run_now("h")
    assert len(names(fake)) == 2
    fake.delete_snapshot = delete  # type: ignore[method-assign]
    async with running(scheduler):
        await trio.sleep(28)
    assert len(names(fake)) == 1


# -- volumes and schedules


async def test_labels_choose_the_volumes_of_each_run(
    autojump_clock: Mock, clock: WallClock, fake: FakePool
) -> None:
    scheduler = Scheduler(fake, {}, clock)
    info = await scheduler.set("gold", Schedule(3600, {"last": 9}, (), {"tier": "gold"}))
    assert (info.matches, info.next_run) == ([], None)
    with pytest.raises(NotFoundError, match="about no volume"):
        await scheduler.run_now("gold")
    async with running(scheduler):
        await trio.sleep(60)
        for volume in ("v", "w"):
            await fake.create_volume(volume, MIB)
            fake.label(volume, tier="gold")
        await trio.sleep(10)
        fake.label("w", tier="silver")
        await trio.sleep(HOUR)
    assert (len(names(fake, "v")), len(names(fake, "w"))) == (2, 1)


async def test_a_configured_schedule_hides_one_that_was_set(
    autojump_clock: Mock, clock: WallClock, fake: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    await fake.create_volume("v", MIB)
    await fake.create_volume("w", MIB)
    await fake.set_schedule("h", HOURLY)
    scheduler = Scheduler(fake, {"h": replace(HOURLY, volumes=("w",))}, clock)
    for refused in (scheduler.set("h", HOURLY), scheduler.remove("h")):
        with pytest.raises(ExistsError, match="in the configuration"):
            await refused
    async with running(scheduler):
        await trio.sleep(10)
    assert (names(fake, "v"), len(names(fake, "w"))) == ([], 1)
    assert scheduler.info("h").source == "configuration"
    assert "the configuration's counts" in caplog.text
    caplog.clear()


async def test_mistakes_are_refused(autojump_clock: Mock, clock: WallClock, fake: FakePool) -> None:
    scheduler = Scheduler(fake, {}, clock)
    with pytest.raises(InvalidArgumentError, match="which snapshots to keep"):
        await scheduler.set("h", replace(HOURLY, keep={}))
    for refused in (scheduler.remove("none"), scheduler.run_now("none")):
        with pytest.raises(NotFoundError, match="no schedule is called 'none'"):
            await refused
