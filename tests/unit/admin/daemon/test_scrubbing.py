"""When scrubs run, at which rate, and that they continue after restarts; on a mock clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock as Mock

from admin.api.scrub_status import ScrubRecord, ScrubState
from admin.config.scrub import ScrubConfig
from admin.daemon.scrub_file import FileKeeper
from admin.daemon.scrubbing import RETRY_S_MAX, SAVE_INTERVAL_S, Scrubbing
from admin.home import Home
from blockdev.errors import DeviceError
from storage.verify.scrub_pass import Gap
from tests.unit.admin.fake_scrubs import LOST, MIB, FakeEngine, MemoryKeeper

DAY = 86400.0
POOL, OTHER = UUID(int=1), UUID(int=2)
DAILY = ScrubConfig(86400, MIB)
ZERO = datetime(2030, 1, 1, tzinfo=UTC)


class Bench:
    """A fake engine, a keeper and a clock; `daemon` runs scrubs on them, as one daemon does."""

    def __init__(self, config: ScrubConfig = DAILY, mib: int = 100) -> None:
        self.config = config
        self.engine = FakeEngine(mib)
        self.keeper = MemoryKeeper()
        self.pool = POOL
        self.shift = timedelta(0)

    def now(self) -> datetime:
        return ZERO + self.shift + timedelta(seconds=trio.current_time())

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Scrubbing]:
        scrubs = Scrubbing(self.pool, self.engine, self.config, self.keeper, self.now)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrubs.run)
            await trio.lowlevel.checkpoint()
            yield scrubs
            nursery.cancel_scope.cancel()


def state(scrubs: Scrubbing) -> ScrubState | None:
    current = scrubs.info().current
    return None if current is None else current.state


async def test_a_scrub_runs_when_it_is_due_and_not_before(autojump_clock: Mock) -> None:
    bench = Bench()
    async with bench.daemon() as scrubs:
        assert scrubs.info().next_run == "2030-01-02T00:00:00+00:00"
        await trio.sleep(DAY - 120)
        assert bench.engine.runs == 0
        await trio.sleep(240)
        assert bench.engine.runs == 1
        await trio.sleep(DAY - 120)
        assert (bench.engine.runs, state(scrubs)) == (1, ScrubState.DONE)
        await trio.sleep(480)
        assert (bench.engine.runs, state(scrubs)) == (2, ScrubState.DONE)


async def test_restarts_do_not_delay_a_scrub(autojump_clock: Mock) -> None:
    bench = Bench()
    for _ in range(3):
        async with bench.daemon():
            await trio.sleep(DAY * 0.3)
    assert bench.engine.runs == 0
    async with bench.daemon():
        await trio.sleep(DAY * 0.3)
    assert bench.engine.runs == 1


async def test_with_never_a_scrub_runs_only_by_command(autojump_clock: Mock) -> None:
    bench = Bench(ScrubConfig(0, 0))
    async with bench.daemon() as scrubs:
        assert scrubs.info().next_run is None
        await trio.sleep(100 * DAY)
        assert bench.engine.runs == 0
        await scrubs.start()
        await trio.sleep(1)
        assert state(scrubs) is ScrubState.DONE


async def test_a_clock_that_was_years_ahead_does_not_end_scrubbing(autojump_clock: Mock) -> None:
    bench = Bench()
    bench.shift = timedelta(days=5000)
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(200)
        assert state(scrubs) is ScrubState.DONE
    bench.shift = timedelta(0)
    async with bench.daemon():
        await trio.sleep(DAY * 0.9)
        assert bench.engine.runs == 1
        await trio.sleep(DAY * 0.2)
        assert bench.engine.runs == 2


async def test_the_rate_is_kept_and_can_change_during_a_scrub(autojump_clock: Mock) -> None:
    """Goal: the bytes read stay within one piece of the rate at every moment."""
    bench = Bench(mib=1000)
    async with bench.daemon() as scrubs:
        await scrubs.start()
        for seconds in range(1, 50):
            await trio.sleep(1)
            current = scrubs.info().current
            assert current is not None
            assert (seconds - 1) * MIB <= current.result.read_bytes <= (seconds + 1) * MIB
        before = current.result.read_bytes  # type: ignore[union-attr]
        await scrubs.start(10 * MIB)
        assert scrubs.info().rate_bytes == 10 * MIB
        await trio.sleep(20)
        assert 199 * MIB <= current.result.read_bytes - before <= 202 * MIB  # type: ignore[union-attr]
        await scrubs.start(0)
        await trio.sleep(1)
        assert state(scrubs) is ScrubState.DONE
        assert scrubs.info().rate_bytes == MIB, "the next one goes at the configured rate"


async def test_a_scrub_continues_after_a_restart(autojump_clock: Mock) -> None:
    bench = Bench()
    bench.engine.finds = [LOST]
    async with bench.daemon() as scrubs:
        await scrubs.start(2 * MIB)
        await trio.sleep(10.2)
    assert bench.engine.runs == 1
    await trio.sleep(DAY * 3)
    async with bench.daemon() as scrubs:
        current = scrubs.info().current
        assert current is not None
        read = current.result.read_bytes
        assert 20 * MIB <= read <= 21 * MIB
        await trio.sleep(30)
        assert state(scrubs) is ScrubState.RUNNING
        await trio.sleep(30)
        assert state(scrubs) is ScrubState.DONE
        assert current.result.read_bytes == 100 * MIB
        assert 49 <= current.result.seconds <= 51, "time when nothing ran is left out"
    async with bench.daemon() as scrubs:
        done = scrubs.info().current
        assert done is not None
        assert done.result.findings == [LOST]
        assert bench.engine.runs == 2


async def test_after_a_crash_a_scrub_continues_from_the_last_save(autojump_clock: Mock) -> None:
    bench = Bench()
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(SAVE_INTERVAL_S + 10)
        kept = bench.keeper.kept
    bench.keeper.kept = kept  # without the save at the end
    async with bench.daemon() as scrubs:
        current = scrubs.info().current
        assert current is not None
        assert current.result.read_bytes >= (SAVE_INTERVAL_S - 2) * MIB


async def test_the_scrub_of_another_pool_is_not_continued(autojump_clock: Mock) -> None:
    bench = Bench()
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(5)
    bench.pool = OTHER
    async with bench.daemon() as scrubs:
        assert state(scrubs) is None


async def test_a_stopped_scrub_stays_stopped_until_started(autojump_clock: Mock) -> None:
    bench = Bench()
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(10)
        assert (await scrubs.stop()).current.state is ScrubState.STOPPED  # type: ignore[union-attr]
    async with bench.daemon() as scrubs:
        await trio.sleep(DAY * 0.9)
        assert (bench.engine.runs, state(scrubs)) == (1, ScrubState.STOPPED)
        await scrubs.start()
        await trio.sleep(95)
        assert state(scrubs) is ScrubState.DONE
        current = scrubs.info().current
        assert current is not None
        assert current.result.read_bytes == 100 * MIB


async def test_a_fresh_start_replaces_a_running_scrub(autojump_clock: Mock) -> None:
    bench = Bench()
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(50)
        info = await scrubs.start(fresh=True)
        assert info.current is not None
        assert info.current.result.read_bytes <= MIB
        await trio.sleep(99)
        assert state(scrubs) is ScrubState.RUNNING
        await trio.sleep(10)
        assert state(scrubs) is ScrubState.DONE


async def test_an_interrupted_scrub_is_tried_again_with_growing_waits(autojump_clock: Mock) -> None:
    bench = Bench()
    bench.engine.raises = DeviceError("cannot")
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(DAY / 2)
        assert 10 <= bench.engine.runs <= 12 + DAY / 2 / RETRY_S_MAX
        assert scrubs.info().last_error == "cannot"
        bench.engine.raises = None
        await trio.sleep(RETRY_S_MAX + 200)
        assert (state(scrubs), scrubs.info().last_error) == (ScrubState.DONE, None)


async def test_a_stop_ends_a_scrub_that_hangs(autojump_clock: Mock) -> None:
    bench = Bench()
    bench.engine.hold = trio.Event()
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(5)
        with trio.fail_after(1):
            await scrubs.stop()
            await scrubs.stop()
        assert state(scrubs) is ScrubState.STOPPED


async def test_a_record_that_cannot_be_saved_does_not_stop_a_scrub(
    autojump_clock: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()

    async def full(record: ScrubRecord) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.keeper, "save", full)
    async with bench.daemon() as scrubs:
        await scrubs.start()
        await trio.sleep(200)
        assert state(scrubs) is ScrubState.DONE


async def test_the_file_keeps_the_whole_record(home: Home) -> None:
    home.pool_dir.mkdir()
    keeper = FileKeeper(home)
    assert keeper.load() is None
    bench = Bench(mib=2)
    bench.keeper = keeper  # type: ignore[assignment]
    bench.engine.finds = [LOST]
    async with bench.daemon() as scrubs:
        await scrubs.start(0)
        while state(scrubs) is not ScrubState.DONE:
            await trio.sleep(0.01)
        scrubs.info().current.result.gaps.append(Gap(1, 2, 3))  # type: ignore[union-attr]
        await scrubs._save()
        kept = keeper.load()
        assert kept is not None
        assert kept == scrubs._record
    (home.pool_dir / "scrub.json").write_text('{"pool": 3}')
    assert keeper.load() is None
